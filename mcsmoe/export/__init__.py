"""A merged model as a stock one, which any engine loads: K router rows instead of an index map.

stock    what it was made of, what no stock configuration describes, and writing it
routers  where the K rows come from, by name: `@ROWS.register("ridge")`
config   a config.json with another number of experts, and not a byte else changed
card     the model card
"""
