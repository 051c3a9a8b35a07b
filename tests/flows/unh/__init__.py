"""UNH-IOL's suites for targets as short exchanges: full feature phase (82 tests), login, CHAP.

The suites' lists of tests are public, their procedures for targets were not to be had: each exchange here is derived
from the section of RFC 7143 that its docstring names. `FFP 9 (3 of 7)` is the third of the seven tests of group 9.
"""
