"""What the commands `official_scripts.py` and `official_tests.py` build, run and write."""
