"""A campaign of damage: runs that are killed, disks that are full, checkpoints that are altered.

Run: python scripts/campaign --output=DIR [--parts=kills,checkpoints,disks,hosts] [--kills=N]
         [--alterations=N] [--seed=N] [--jobs=N]

Every run is the same tiny training, started by the command that a user types, and started again by
the same command until it is done. Its result must be bit for bit that of a run without damage.
docs/robustness.md has the tables. The full disks need root on Linux.
"""
