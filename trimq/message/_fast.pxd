# What other compiled modules take from `_fast.pyx`.

from libc.stdint cimport int32_t, uint32_t, uint64_t, uint8_t

cdef inline uint32_t _u4(const uint8_t* at) noexcept nogil:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]

cdef bint id_key(bytes topic, bytes unique, int32_t times, uint64_t* key) except -1
