"""Whether an attack worked: checks that warn and document, and certify nothing.

``invariants`` holds V1..V12, whose violation is a bug; ``tiers.CHECKS`` the checks K1..K19 of the
attack's strength, by how much they cost.
"""
