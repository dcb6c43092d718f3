"""All that is looked at: tables, pictures, the page, and rows and values that other programs draw and compare.

A file has one picture, or one section of the page, with the markup of the same name beside it. `gathered` reads what
the page is made of, `figure` has the style of all pictures, `page` puts the sections together.
"""
