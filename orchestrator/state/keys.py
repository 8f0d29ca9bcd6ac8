"""Every name under which something is kept in Redis.

    mo:owners                       set     everyone who ever submitted a job
    mo:keys                         zset    all API keys' ids by creation, us of Redis time
    mo:key:<id>                     hash    an API key, known by its SHA-256
    mo:rl:<id>                      string  what that key wrote in the present minute
    mo:webhooks:dispatcher          string  the worker that delivers webhooks, while it does
    mo:<owner>:webhooks             hash    webhook id -> JSON: address, events, signing secret
    mo:<owner>:webhook:<id>:cursors hash    job id -> the last event dealt with
    mo:<owner>:webhook:<id>:state   hash    failures in a row, the last error, what was dropped
    mo:<owner>:rate                 string  what its keys wrote in the present minute
    mo:<owner>:keys                 zset    the owner's API keys, as in mo:keys
    mo:<owner>:gpus                 hash    limit, and <year>-<month> -> GPU time used, in millionths of a GPU second;
                                            failed: how many jobs did, ever
    mo:<owner>:queue:default        zset    waiting jobs by priority and age (scripts/prelude.lua)
    mo:<owner>:leases               zset    held jobs by expiry, ms of Redis time
    mo:<owner>:stalled              hash    job id -> expiry and pass of the first sweep
    mo:<owner>:jobs                 zset    all jobs by creation, us of Redis time
    mo:<owner>:kept                 hash    bytes: of the specs, metadata, steps and steering of all jobs
    mo:<owner>:answers              zset    job id -> expiry, ms of Redis time, of its string mo:<owner>:idem:...
    mo:<owner>:idem:<sha256>        string  job id | sha256 of the body | the job's fields at first, for 24 h
    mo:<owner>:job:{j}              hash    the job's one source of truth
    mo:<owner>:job:{j}:spec         string  the document as submitted
    mo:<owner>:job:{j}:events       stream  <seq>-0, seq without a gap
    mo:<owner>:job:{j}:marks        stream  of the events that are told once, those that outlive the others, likewise
    mo:<owner>:job:{j}:replies      list    replies to recent calls, for retries
    mo:<owner>:job:{j}:told         hash    what is told once -> seq of its event
    mo:<owner>:job:{j}:steps        stream  <fence>-<step>: the ledger
    mo:<owner>:job:{j}:ckpts        hash    step -> JSON of the checkpoint
    mo:<owner>:job:{j}:front        hash    doc: JSON of the Pareto front; volume: of its newest step and its volume
    mo:<owner>:job:{j}:w            hash    steering head: ver, eff, current
    mo:<owner>:job:{j}:wlog         stream  <ver>-1: every steering change
    mo:<owner>:job:{j}:watcher      string  the worker that watches its driver on a cluster, while it does

The braces are a hash tag: in a cluster all of one job lies in one slot. An API key's id is 16 hexadecimal digits,
which no part of an owner's names is, so owners called `key` or `rl` share nothing with API keys.
"""

import hashlib
import re

from orchestrator.errors import JobNotFound

OWN_OWNER = "local"  # the installation's own
OWNERS = "mo:owners"
API_KEYS = "mo:keys"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
_KEY_ID = re.compile(r"[0-9a-f]{16}")


def is_name(text: str) -> bool:
    """True if `text` may stand in a key (job ids, owners): letters, digits, _ and -, at most 255."""
    return _NAME.fullmatch(text) is not None


def is_key_id(text: str) -> bool:
    """True if `text` may be the id of an API key."""
    return _KEY_ID.fullmatch(text) is not None


def api_key(key_id: str) -> str:
    return f"mo:key:{key_id}"


def rate(key_id: str) -> str:
    return f"mo:rl:{key_id}"


class Keys:
    """The key names of one owner (`ValueError` if malformed); a malformed job id is `JobNotFound`."""

    def __init__(self, owner: str) -> None:
        if not is_name(owner):
            raise ValueError("owner: 1 to 255 letters, digits, _ or - are allowed")
        self._prefix = f"mo:{owner}:"
        self.queue = f"{self._prefix}queue:default"
        self.leases = f"{self._prefix}leases"
        self.stalled = f"{self._prefix}stalled"
        self.jobs = f"{self._prefix}jobs"
        self.kept = f"{self._prefix}kept"
        self.answers = f"{self._prefix}answers"
        self.api_keys = f"{self._prefix}keys"
        self.rate = f"{self._prefix}rate"
        self.gpu_time = f"{self._prefix}gpus"

    def idempotency(self, key: str) -> str:
        return f"{self._prefix}idem:{hashlib.sha256(key.encode()).hexdigest()}"

    def job(self, job_id: str) -> str:
        if not is_name(job_id):
            raise JobNotFound(job_id)
        return f"{self._prefix}job:{{{job_id}}}"

    def spec(self, job_id: str) -> str:
        return f"{self.job(job_id)}:spec"

    def events(self, job_id: str) -> str:
        return f"{self.job(job_id)}:events"

    def replies(self, job_id: str) -> str:
        return f"{self.job(job_id)}:replies"

    def marks(self, job_id: str) -> str:
        return f"{self.job(job_id)}:marks"

    def told(self, job_id: str) -> str:
        return f"{self.job(job_id)}:told"

    def steps(self, job_id: str) -> str:
        return f"{self.job(job_id)}:steps"

    def checkpoints(self, job_id: str) -> str:
        return f"{self.job(job_id)}:ckpts"

    def front(self, job_id: str) -> str:
        return f"{self.job(job_id)}:front"

    def steering(self, job_id: str) -> str:
        return f"{self.job(job_id)}:w"

    def steering_log(self, job_id: str) -> str:
        return f"{self.job(job_id)}:wlog"

    def watcher(self, job_id: str) -> str:
        return f"{self.job(job_id)}:watcher"
