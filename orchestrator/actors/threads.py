"""How OpenMP's threads wait, on CPU, for the next thing that they do together."""

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""Variables of a process, there before it loads torch.

Threads that spin as long as they wait starve whoever else has work: jobs on two cores were 3 to 10 times slower. Those
that never spin are asleep when the next product of a small model comes, a few microseconds later. A thousand turns are
in between: an update of the quickstart policy on two quiet cores takes .35 s, without any .49 s; beside a process that
keeps one of the cores, .73 and .65 s.
"""
