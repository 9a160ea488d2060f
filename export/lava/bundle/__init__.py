"""What every bundle holds, copied as it stands: `run.py`, `README.md` and the package `statten_lava`.

The package needs Python 3.10 or later, numpy and Lava, and nothing of `statten_deploy`.
"""
