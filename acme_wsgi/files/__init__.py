"""Files that are sent: opened strictly below their root, kept open, known to be valid or looked at again.

Its law: knows file systems. It knows no HTTP, no route and no setting.
"""
