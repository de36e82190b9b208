# What other compiled modules take from `_fast.pyx`.

from libc.stdint cimport int32_t, uint64_t

cdef bint id_key(bytes topic, bytes unique, int32_t times, uint64_t* key) except -1
