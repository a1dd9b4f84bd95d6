"""One file a role: ``start`` builds the role from the settings and opens it on the process's stack.

A process imports the files of its own roles alone: a collector on a GPU node carries no page and no pager.
"""
