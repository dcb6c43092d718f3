"""Measurements of a model or checkpoint, as numbers; `report` makes tables and figures of them.

measure      all figures of one checkpoint, whole in memory or block by block
generation   texts that a model writes, greedily, up to its end token
quality      the task's scores, with intervals: by generated text, by likelihood of choices or of tokens
cost         parameters, bytes, experts, FLOPs per token
speed        seconds, tokens per second and peak memory on this machine
stable_rank  how many dimensions the experts' weights use
"""
