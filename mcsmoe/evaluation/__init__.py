"""Measures of a model, and of a checkpoint: numbers only; what is looked at is made in `report`.

quality      the task's figures, with intervals: by generated text, by likelihood of choices or of tokens
cost         parameters, bytes, experts, FLOPs per token
speed        seconds, tokens per second and peak memory on this machine
stable_rank  how many dimensions the weights of experts use
"""
