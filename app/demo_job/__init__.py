"""The training job of ``nantucket demo``: a real small language model that a learning-rate kick drives to overflow.

``python -m app.demo_job`` runs it as a process of its own, as a user's job would be; docs/demo.md says what is real
in it. This package imports nothing when it is imported, so that ``__main__`` can set the number of threads before
numpy loads.
"""
