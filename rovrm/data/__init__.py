"""From what a setting names (a file, a folder, a hub id, the world) to examples.

The way of a line of a JSONL file to an Example:

    sources.py       "pairs.jsonl?n=500" -> which files, which of their rows
    raw_rows.py      the line -> a dict and its place (table_rows, dataset_rows, world_rows: other kinds of data)
    reader.py        the dict -> an Example, with its images and every check on the way
    formats.py       ... which asks here what the columns mean: prompt, responses and ranks
    messages.py      ... and here how the messages are written
    turns.py         ... which turns stand in two columns, or in `history` and `system`
    pictures.py      ... which pictures the row has, and where each belongs
    ratings.py       ... what the numbers say about the order of the responses
    columns.py       ... and which columns nothing has read

example.py is the Example itself, images.py how an image is found and opened, bad_rows.py what becomes of a row that
cannot be used. loading.py draws n examples from several sources for training, prompts.py reads rows for scoring,
captions.py puts captions in the place of images, and splits.py says which examples are held out.
"""
