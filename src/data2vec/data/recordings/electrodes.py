"""Places of electrodes on a sphere of radius 1, x to the right, y to the front, z up, by name in lower case: the 10-20 system
and the rest of the 10-10 system's usual names, at the spherical angles of BESA's standard electrodes."""

import math

# (name, degrees from Cz, negative on the left; azimuth in degrees)
_ANGLES = (
    *(("fp1", -90, -72), ("fp2", 90, 72), ("fpz", 90, 90), ("af7", -90, -54), ("af3", -74, -65), ("afz", 67, 90)),
    *(("af4", 74, 65), ("af8", 90, 54), ("f7", -90, -36), ("f5", -75, -41), ("f3", -60, -51), ("f1", -50, -68), ("fz", 45, 90)),
    *(("f2", 50, 68), ("f4", 60, 51), ("f6", 75, 41), ("f8", 90, 36), ("ft7", -90, -18), ("fc5", -69, -21), ("fc3", -49, -29)),
    *(("fc1", -31, -46), ("fcz", 22, 90), ("fc2", 31, 46), ("fc4", 49, 29), ("fc6", 69, 21), ("ft8", 90, 18), ("t7", -90, 0)),
    *(("c5", -67, 0), ("c3", -45, 0), ("c1", -22, 0), ("cz", 0, 0), ("c2", 22, 0), ("c4", 45, 0), ("c6", 67, 0), ("t8", 90, 0)),
    *(("tp7", -90, 18), ("cp5", -69, 21), ("cp3", -49, 29), ("cp1", -31, 46), ("cpz", 22, -90), ("cp2", 31, -46)),
    *(("cp4", 49, -29), ("cp6", 69, -21), ("tp8", 90, -18), ("p7", -90, 36), ("p5", -75, 41), ("p3", -60, 51), ("p1", -50, 68)),
    *(("pz", 45, -90), ("p2", 50, -68), ("p4", 60, -51), ("p6", 75, -41), ("p8", 90, -36), ("po7", -90, 54), ("po3", -74, 65)),
    *(("poz", 67, -90), ("po4", 74, -65), ("po8", 90, -54), ("o1", -90, 72), ("oz", 90, -90), ("o2", 90, -72)),
    *(("a1", -115, 0), ("a2", 115, 0)),
)


def _place(inclination: float, azimuth: float) -> tuple[float, float, float]:
    theta, phi = math.radians(inclination), math.radians(azimuth)
    return (math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta))


POSITIONS = {name: _place(inclination, azimuth) for name, inclination, azimuth in _ANGLES}
"""(x, y, z) of each electrode."""
