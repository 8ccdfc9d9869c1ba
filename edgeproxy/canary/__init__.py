"""Plants random texts wherever content passes, makes things go wrong, and looks for them in whatever was written.

The search proves itself: texts that were left on purpose have to be found. What is told of a find is its place and what
had held the text; never the text, nor what stands around it. Nothing here belongs to the way of a request.
"""
