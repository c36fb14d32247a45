"""Stage 6 of 6: a trainer goes on where it stopped.

    reads    arguments and live state of a trainer
    gives    the position to go on from, with everything restored

`checkpointer` is what a trainer holds; `session` is one start, step by step; `choice` says which checkpoint; `restore`
puts state back; `agree` keeps the ranks together; `banner` tells the story.
"""
