"""The edge of an application's process: where message ids come from unless something else was installed.

Importing this module is what makes `Message(...)` work without arguments. A simulator sets `ID_SOURCE` in its context,
which comes before this default.
"""

from __future__ import annotations

import random

from trimq.message.ids import IdSource, set_default_source
from trimq.remoting.system import SystemClock

set_default_source(IdSource(random.Random(), SystemClock()))
