"""The local control plane: MiniStack, bound to loopback, with the additions of this project.

Everything here but `ministack.py` runs in MiniStack's virtual environment, which has none of the
project's other requirements. It imports only this package and modules that need none of them.
"""
