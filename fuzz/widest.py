#!/usr/bin/env python3
"""Prints the inputs of a libFuzzer merge that reach most of what those of its first folder do not.

    fuzz/widest.py CONTROL_FILE HOW_MANY

The file is what `-merge_control_file` has left: the inputs' names, and for each the edges that it reaches and no
smaller one does.
"""

import sys


def main():
    with open(sys.argv[1], encoding="utf-8") as lines:
        count, first = int(next(lines)), int(next(lines))
        names = [next(lines).rstrip("\n") for _ in range(count)]
        edges = {}
        for line in lines:
            kind, number, *reached = line.split()
            if kind == "COV":
                edges[int(number)] = set(reached)
    seen = set().union(*(edges.pop(i, set()) for i in range(first)))
    for _ in range(int(sys.argv[2])):
        for reached in edges.values():
            reached -= seen
        widest = max(edges, key=lambda i: len(edges[i]), default=None)
        if widest is None or not edges[widest]:
            break
        print(names[widest])
        seen |= edges.pop(widest)


if __name__ == "__main__":
    main()
