"""The local control plane: MiniStack, bound to loopback, with what this project needs added.

Everything here but `install.py` runs in MiniStack's own virtual environment and imports nothing
of the project besides this package.
"""
