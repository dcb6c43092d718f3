"""`mcsmoe shrink`: a smaller model from one call, from the text to the model card.

texts      where text comes from: files, a hub data set, a mix
rows       which of it experts are compared on, and which models are measured on
job        a request checked against model, machine and text, and what it needs, before any work
pace       how long that will take here
machine    memory and disk that are free
workspace  what finished phases leave for a run that goes on
run        the phases
measure    what a model predicts on the held-out rows
outcome    result and source compared: figures and model card
"""
