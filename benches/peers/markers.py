"""Puts what a bench wrote between its markers in a document."""

import sys


def publish(path, begin, end, text):
    """Puts the text between the markers of a file; prints it where there are none."""
    document = path.read_text()
    if begin not in document or end not in document:
        print(f"{path} has no {begin} and {end}:\n{text}", file=sys.stderr)
        return
    before, rest = document.split(begin, 1)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")
