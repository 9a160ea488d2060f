"""A fixed-point spiking network as Lava processes; started by the bundle's run.py."""
