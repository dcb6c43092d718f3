"""A merged model as a stock one, which any engine loads: K router rows instead of an index map.

write    `export_model`: all of it, from the calibration sample's tokens to a verified checkpoint
stock    what it was made of, what no stock configuration describes, and writing its tensors
routers  where the K rows come from, by name: `@ROWS.register("ridge")`
config   a config.json with another number of experts, and not a byte else changed
card     the model card
"""
