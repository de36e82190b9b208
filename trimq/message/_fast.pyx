# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The hottest loops over records, compiled; each has a twin in Python that it must equal, and that runs without it.

`walk` is what dispatch takes out of an entry (`broker.store.columns`), `enter_ids` what enters the id window
(`broker.metadata.id_window`). Every length is checked before it is followed.
"""

from cpython cimport array
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy, memset

import array

cdef enum:
    FIXED = 88          # up to and including the body length
    LEAST = 91          # no body, topic or properties
    MAGIC = 0xDAA320A7
    HOSTS_V6 = 0x30

cdef array.array _i32 = array.array("i")
cdef array.array _u32 = array.array("I")
cdef array.array _i64 = array.array("q")
cdef array.array _u64 = array.array("Q")

cdef uint32_t[256] _crc


cdef void _make_crc() noexcept nogil:
    cdef uint32_t at, value
    cdef int bit
    for at in range(256):
        value = at
        for bit in range(8):
            value = value >> 1 ^ <uint32_t>0xEDB88320 if value & 1 else value >> 1
        _crc[at] = value


_make_crc()


cdef inline uint32_t _crc32(const uint8_t* data, Py_ssize_t size, uint32_t seed) noexcept nogil:
    cdef uint32_t value = ~seed
    cdef Py_ssize_t at
    for at in range(size):
        value = (value >> 8) ^ _crc[(value ^ data[at]) & 0xFF]
    return ~value


cdef inline uint64_t _u8(const uint8_t* at) noexcept nogil:
    return <uint64_t>_u4(at) << 32 | _u4(at + 4)


cdef struct Slice:
    const uint8_t* at
    Py_ssize_t size


cdef void _values(const uint8_t* raw, Py_ssize_t size, Slice* tag, Slice* unique, Slice* keys) noexcept nogil:
    """TAGS, UNIQ_KEY and KEYS of a property string: the last that is not empty counts. Agrees with `index_values`."""
    cdef const uint8_t* end = raw + size
    cdef const uint8_t* stop
    cdef const uint8_t* value
    cdef Py_ssize_t name
    cdef Slice* wanted
    tag.size = unique.size = keys.size = 0
    while raw < end:
        stop = <const uint8_t*>memchr(raw, 2, end - raw)
        if stop == NULL:
            stop = end
        value = <const uint8_t*>memchr(raw, 1, stop - raw)
        if value != NULL:
            name = value - raw
            wanted = NULL
            if name == 4:
                if memcmp(raw, b"TAGS", 4) == 0:
                    wanted = tag
                elif memcmp(raw, b"KEYS", 4) == 0:
                    wanted = keys
            elif name == 8 and memcmp(raw, b"UNIQ_KEY", 8) == 0:
                wanted = unique
            if wanted != NULL and stop - value > 1:
                wanted.at = value + 1
                wanted.size = stop - value - 1
        raw = stop + 1


def walk(records, topic_id, key_seed, code_of, bytes timer_topic):
    """The fields of `Columns`, or None when the careful walk has to say what is there.

    It knows ordinary records only: first layout, IPv4 hosts, a topic that is known, not the timer topic.
    """
    cdef const uint8_t[::1] view = records
    cdef Py_ssize_t total = view.shape[0]
    if not total:
        return None
    cdef const uint8_t* data = &view[0]

    # First how many there are, and whether all of them are ordinary.
    cdef Py_ssize_t at = 0, end, topic_at, props_at, count = 0
    cdef uint32_t size, body
    while at < total:
        if total - at < LEAST:
            return None
        size, body = _u4(data + at), _u4(data + at + 84)
        if _u4(data + at + 4) != MAGIC or _u4(data + at + 36) & HOSTS_V6:
            return None
        end = at + size
        topic_at = at + FIXED + 1 + <Py_ssize_t>body
        if size < LEAST or end > total or topic_at + 2 > end:
            return None
        props_at = topic_at + data[topic_at - 1] + 2
        if props_at > end or props_at + (<Py_ssize_t>data[props_at - 2] << 8 | data[props_at - 1]) != end:
            return None
        count += 1
        at = end

    cdef array.array queue_ids = array.clone(_i32, count, False)
    cdef array.array queue_offsets = array.clone(_i64, count, False)
    cdef array.array positions = array.clone(_i64, count, False)
    cdef array.array reconsumes = array.clone(_i32, count, False)
    cdef array.array hashes = array.clone(_u32, count, False)
    cdef array.array seconds = array.clone(_u32, count, False)
    cdef array.array places = array.clone(_u64, count, False)
    cdef list topics = [None] * count
    cdef list uniques = [None] * count
    cdef list runs = []

    cdef Py_ssize_t number = 0, topic_size, known_size = -1, keyed = 0, room = count, word_size
    cdef const uint8_t* known = NULL
    cdef const uint8_t* word
    cdef const uint8_t* last
    cdef const uint8_t* space
    cdef const uint8_t* head
    cdef bytes topic = b""
    cdef Slice tag, unique, keys, coded
    cdef int64_t tid = 0, key, run_key = -1, expected = -1, offset, position, code = 0
    cdef dict newest = {}
    cdef array.array units
    cdef Py_ssize_t filled
    cdef uint64_t store_ms = 0
    cdef uint32_t seed = 0, second
    cdef int32_t queue_id
    coded.at, coded.size = NULL, 0
    at = 0
    while at < total:
        head = data + at
        size, body = _u4(head), _u4(head + 84)
        topic_at = at + FIXED + 1 + <Py_ssize_t>body
        topic_size = data[topic_at - 1]
        if topic_size != known_size or memcmp(data + topic_at, known, topic_size) != 0:
            known, known_size = data + topic_at, topic_size
            topic = PyBytes_FromStringAndSize(<const char*>known, topic_size)
            if topic == timer_topic:
                return None
            try:
                tid = topic_id(topic)
            except KeyError:
                return None
            seed = key_seed(tid)
        props_at = topic_at + topic_size + 2
        queue_id = <int32_t>_u4(head + 12)
        offset = <int64_t>_u8(head + 20)
        position = <int64_t>_u8(head + 28)
        store_ms = _u8(head + 56)
        if queue_id < 0 or queue_id > 0xFFFF or <int64_t>store_ms < 0:
            return None
        _values(data + props_at, at + size - props_at, &tag, &unique, &keys)
        if not tag.size:
            code = 0
        elif tag.size != coded.size or memcmp(tag.at, coded.at, tag.size) != 0:
            code = code_of(PyBytes_FromStringAndSize(<const char*>tag.at, tag.size))
        coded = tag
        key = tid << 16 | queue_id
        if key != run_key:
            run = newest.get(key)
            if run is None:
                expected = -1
            else:
                units = run[2]
                expected = <int64_t>run[1] + len(units) // 3
            run_key = key
        if offset != expected:
            units = array.clone(_i64, 0, False)
            run = newest[key] = (key, offset, units)
            runs.append(run)
        expected = offset + 1
        filled = len(units)
        array.resize_smart(units, filled + 3)
        units.data.as_longlongs[filled] = position
        units.data.as_longlongs[filled + 1] = size
        units.data.as_longlongs[filled + 2] = code
        topics[number] = topic
        queue_ids.data.as_ints[number] = queue_id
        queue_offsets.data.as_longlongs[number] = offset
        positions.data.as_longlongs[number] = position
        reconsumes.data.as_ints[number] = <int32_t>_u4(head + 72)
        second = <uint32_t>(store_ms // 1000)
        if unique.size:
            uniques[number] = PyBytes_FromStringAndSize(<const char*>unique.at, unique.size)
            if keyed == room:
                room = _more(hashes, seconds, places, room)
            hashes.data.as_uints[keyed] = _crc32(unique.at, unique.size, seed)
            seconds.data.as_uints[keyed] = second
            places.data.as_ulonglongs[keyed] = <uint64_t>position
            keyed += 1
        word, last = keys.at, keys.at + keys.size
        while keys.size and word < last:
            space = <const uint8_t*>memchr(word, 32, last - word)
            if space == NULL:
                space = last
            word_size = space - word
            if word_size:
                if keyed == room:
                    room = _more(hashes, seconds, places, room)
                hashes.data.as_uints[keyed] = _crc32(word, word_size, seed)
                seconds.data.as_uints[keyed] = second
                places.data.as_ulonglongs[keyed] = <uint64_t>position
                keyed += 1
            word = space + 1
        number += 1
        at += size
    array.resize(hashes, keyed)
    array.resize(seconds, keyed)
    array.resize(places, keyed)
    return topics, queue_ids, queue_offsets, positions, reconsumes, uniques, store_ms, runs, hashes, seconds, places


cdef Py_ssize_t _more(array.array hashes, array.array seconds, array.array places, Py_ssize_t room) except -1:
    """Twice the room for keys: a record may have many."""
    room = 2 * room + 16
    array.resize_smart(hashes, room)
    array.resize_smart(seconds, room)
    array.resize_smart(places, room)
    return room


# -- ids: BLAKE2b with a digest of 8 bytes over one block (RFC 7693) --------------------------------------------------

cdef enum:
    BLOCK = 128

cdef uint64_t[8] _iv = [
    0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
    0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
]
cdef uint8_t[12][16] _sigma = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
]


cdef inline uint64_t _ror(uint64_t value, int by) noexcept nogil:
    return value >> by | value << (64 - by)


cdef inline void _mix(uint64_t* v, int a, int b, int c, int d, uint64_t x, uint64_t y) noexcept nogil:
    v[a] = v[a] + v[b] + x
    v[d] = _ror(v[d] ^ v[a], 32)
    v[c] = v[c] + v[d]
    v[b] = _ror(v[b] ^ v[c], 24)
    v[a] = v[a] + v[b] + y
    v[d] = _ror(v[d] ^ v[a], 16)
    v[c] = v[c] + v[d]
    v[b] = _ror(v[b] ^ v[c], 63)


cdef uint64_t _blake2b_8(const uint8_t* block, Py_ssize_t size) noexcept nogil:
    """Of a block that is padded with zeros; the digest's 8 bytes as a big-endian number."""
    cdef uint64_t[16] m
    cdef uint64_t[16] v
    cdef uint64_t first = _iv[0] ^ 0x01010008, digest, word
    cdef int at, byte, turn
    cdef const uint8_t* s
    for at in range(16):
        word = 0
        for byte in range(8):
            word |= <uint64_t>block[8 * at + byte] << 8 * byte
        m[at] = word
    for at in range(8):
        v[at] = v[at + 8] = _iv[at]
    v[0] = first
    v[12] ^= <uint64_t>size
    v[14] = ~v[14]
    for turn in range(12):
        s = _sigma[turn]
        _mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]])
        _mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]])
        _mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]])
        _mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]])
        _mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]])
        _mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]])
        _mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]])
        _mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]])
    word = first ^ v[0] ^ v[8]
    digest = 0
    for byte in range(8):
        digest = digest << 8 | (word >> 8 * byte & 0xFF)
    return digest


cdef bint id_key(bytes topic, bytes unique, int32_t times, uint64_t* key) except -1:
    """The key of one message; False for what does not fit one block."""
    cdef uint8_t[BLOCK] block
    cdef Py_ssize_t topic_size = len(topic), unique_size = len(unique), size = topic_size + unique_size + 2
    cdef char[16] digits
    cdef int count
    if size + 16 > BLOCK:
        return False
    memset(block, 0, BLOCK)
    memcpy(block, <const char*>topic, topic_size)
    memcpy(block + topic_size + 1, <const char*>unique, unique_size)
    count = snprintf(digits, 16, "%d", <int>times)
    memcpy(block + size, digits, count)
    key[0] = _blake2b_8(block, size + count)
    return True


def enter_ids(
    dict fresh, list topics, list uniques, array.array reconsumes, array.array positions, const uint8_t[::1] covered, careful_key
):
    """See `broker.metadata.id_window.enter_carefully`; `careful_key` is its `id_key`, for ids that are longer than most."""
    cdef Py_ssize_t number, count = len(topics)
    cdef uint64_t key = 0
    if not len(uniques) == len(reconsumes) == len(positions) == covered.shape[0] == count:
        raise ValueError("columns of unequal length")
    if reconsumes.typecode != "i" or positions.typecode != "q":
        raise TypeError("columns of another type")
    for number in range(count):
        unique = uniques[number]
        if unique is None or covered[number]:
            continue
        if id_key(topics[number], unique, reconsumes.data.as_ints[number], &key):
            fresh[key] = positions.data.as_longlongs[number]
        else:
            fresh[careful_key(topics[number], unique, reconsumes.data.as_ints[number])] = positions.data.as_longlongs[number]
