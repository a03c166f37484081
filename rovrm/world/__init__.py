"""A small synthetic world that knows the truth: scenes, questions, preference pairs, an oracle and a tiny base model.

    text.data=world:text caption.data=world:caption visual.data=world:visual      # as data of rovrm.train
    python -m rovrm.world train out=base                                          # makes the shipped base again

scenes.py draws, language.py words, pairs.py prefers, tokens.py and reading.py read, oracle.py judges. The shipped
`tiny-llava/` is made by rovrm/tiny_base.
"""
