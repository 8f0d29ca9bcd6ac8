"""Learned rewards: neural models that read a prompt and a completion. torch is imported when one is built."""
