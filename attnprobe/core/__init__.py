"""The nouns that cross from one package to the next; imports nothing else from attnprobe.

Question: one class per noun, or dictionaries? Choice: small frozen dataclasses that check their
shapes when made, because a wrong axis order gives numbers that look right. Reconsider if building
them ever shows up in a profile.
"""
