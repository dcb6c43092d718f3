"""Export of a merged model as a stock checkpoint that any engine loads: K router rows replace the index map.

write    `export_model`: the whole export, from calibration tokens to a verified checkpoint
stock    reading a merged checkpoint, checks that a stock class can hold it, and writing its tensors
routers  sources of the K router rows, by name: `@ROWS.register("ridge")`
config   config.json with the number of experts changed, and nothing else
card     the model card, and `pipeline_card`: its contents for an export by hand from the pipeline
"""
