"""Text in, numbers out: verifiers, learned reward models and judges behind one protocol."""
