"""Walkers rendered from a body model and motion capture.

    recordings → cycles → gait       how somebody walks: read, cut into cycles, varied
    body → clothing                  who it is: a shape, what is worn and carried
    camera → raster → faults         what a camera and a segmenter make of it
    scenes                           what all who are filmed in one place have in common
    identity                         one person's walks, from one seed
    recipe, command                  a dataset: `python -m training render RECIPE --out PACK`
    demo, sheet                      the walkers `gaitid demo` ships with; a contact sheet

Needs the extra `render`. All lengths are metres, all angles radians unless a name says otherwise.
"""
