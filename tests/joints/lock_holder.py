"""Another process that holds the write lock of a SQLite file until its standard input ends.

python lock_holder.py FILE        prints `held` once it has the lock
"""

import sqlite3
import sys

database = sqlite3.connect(sys.argv[1], timeout=60.0, isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
database.execute("ROLLBACK")
