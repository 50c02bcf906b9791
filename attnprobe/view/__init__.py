"""The attention explorer: an image, a query token, and what every block and head attends to from there.

Question: a plotting library, or a page of our own? Choice: 800 lines of plain JavaScript without a framework or a
remote script, so that a page works from a mail, offline and in ten years. Two sources of maps answer the same two
questions: bytes packed into a report (`embedded`), and a server on this machine for a file of any size (`server`).
Question: which bytes? Choice: one per weight on a square-root scale, deflated; see `packing` for the error. A page
stays below 5 MB by leaving out images first (two are worth more than detail), then single heads, then blocks.
Question: who may read the viewer's maps? Choice: whoever knows a random word in its address, on this machine; the
Host header must be ours, so that no page of another site reaches it by a name that points here.
Question: why no torch? Importing it takes 2 s and 660 MB, more than anybody waits for a first image.
"""
