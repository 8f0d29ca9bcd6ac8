"""Characters that a name may not have where people read it."""

import re

# They move a cursor, break a line or turn the direction of writing where a name is shown.
UNSHOWN = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
