"""Container images as data: read, verified and merged without unpacking anything to disk.

``source.open_image`` opens any form of image; ``source.Image.find_file`` and ``source.Image.tree`` look into it;
``stream`` writes a merged tree as one canonical tar; ``kernel`` knows what a bootable kernel looks like.
"""
