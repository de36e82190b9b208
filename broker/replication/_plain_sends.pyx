# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A run of plain sends, compiled: from the frames of one read to records and answers without an object per message.

*Plain* is a JSON send of one message (code 310) as clients write it: compact, ASCII, every field once and in its
expected form, no property that makes the message special. What is not is left to the decoders, which give the same
answer or say what is wrong: the run ends before it. `broker.replication.plain_runs` admits a run; the way of a single
send (`broker.processor.send_message`, `broker.replication.sends`) is the twin that it must equal.

Every length is checked before it is followed.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy

from trimq.message._fast cimport _u4, id_key

cdef extern from "string.h" nogil:
    void* memmem(const void* haystack, size_t size, const void* needle, size_t length)

cdef enum:
    FIXED = 88              # of a record, up to and including the body length
    LEAST = 91              # no body, topic or properties
    MAGIC = 0xDAA320A7
    HOSTS_V6 = 0x30
    TOPIC_MAX = 127
    PROPERTIES_MAX = 32000  # room for an id, below what a record holds
    ID_DIGITS = 32
    OWN_ID = 42             # UNIQ_KEY, two separators, the id
    ONEWAY = 2
    CODE = 310

cdef struct Slice:
    const uint8_t* at
    Py_ssize_t size

cdef struct Value:
    const uint8_t* at
    Py_ssize_t size
    bint quoted
    bint escaped

cdef struct Text:           # what a message brings; `own_id`: bytes of an id that it gets
    const uint8_t* body
    const uint8_t* properties
    const uint8_t* unique
    Py_ssize_t body_size
    Py_ssize_t properties_size
    Py_ssize_t unique_size
    Py_ssize_t own_id
    int32_t flag

cdef struct Send:
    Text text
    Py_ssize_t record_size
    int64_t born_ms
    int64_t queue_offset
    int64_t position
    uint64_t pid
    int64_t sequence
    int64_t floor
    int32_t epoch
    int32_t topic
    int32_t queue_id
    int32_t sys_flag
    int32_t reconsume_times
    int32_t opaque
    bint oneway
    bint numbered


cdef inline void _put4(uint8_t* at, uint32_t value) noexcept nogil:
    at[0], at[1], at[2], at[3] = value >> 24 & 0xFF, value >> 16 & 0xFF, value >> 8 & 0xFF, value & 0xFF


cdef inline void _put8(uint8_t* at, uint64_t value) noexcept nogil:
    _put4(at, <uint32_t>(value >> 32))
    _put4(at + 4, <uint32_t>value)


# -- JSON, as far as clients write it ---------------------------------------------------------------------------------

cdef const uint8_t* _text(const uint8_t* at, const uint8_t* end, Value* value) noexcept nogil:
    """A string whose opening quote is at `at`; returns what follows it, NULL when it is not plain."""
    cdef uint8_t c
    at += 1
    value.at = at
    value.quoted = True
    value.escaped = False
    while at < end:
        c = at[0]
        if c == 34:  # "
            value.size = at - value.at
            return at + 1
        if c == 92:  # backslash
            value.escaped = True
            at += 1
            if at == end:
                return NULL
            c = at[0]
        if c < 32 or c > 126:
            return NULL
        at += 1
    return NULL


cdef const uint8_t* _value(const uint8_t* at, const uint8_t* end, Value* value) noexcept nogil:
    """A string, number or boolean; returns what follows it, NULL for anything else."""
    cdef uint8_t c
    if at == end:
        return NULL
    if at[0] == 34:
        return _text(at, end, value)
    value.at = at
    value.quoted = value.escaped = False
    while at < end:
        c = at[0]
        if not (c == 45 or 48 <= c <= 57 or 97 <= c <= 122):  # - 0..9 a..z
            break
        at += 1
    value.size = at - value.at
    return at if value.size else NULL


cdef bint _number(const Value* value, int64_t least, int64_t most, int64_t* number) noexcept nogil:
    """A decimal number of at most 18 digits, between the two limits."""
    cdef const uint8_t* at = value.at
    cdef Py_ssize_t left = value.size
    cdef int64_t found = 0
    cdef bint negative = left > 0 and at[0] == 45
    if negative:
        at += 1
        left -= 1
    if not 1 <= left <= 18 or (at[0] == 48 and (left > 1 or negative)):
        return False
    while left:
        if not 48 <= at[0] <= 57:
            return False
        found = 10 * found + (at[0] - 48)
        at += 1
        left -= 1
    number[0] = -found if negative else found
    return least <= number[0] <= most


cdef bint _hex(const Value* value, uint64_t* number) noexcept nogil:
    cdef Py_ssize_t each
    cdef uint8_t c
    if not value.quoted or not 1 <= value.size <= 16:
        return False
    number[0] = 0
    for each in range(value.size):
        c = value.at[each]
        if 48 <= c <= 57:
            c -= 48
        elif 97 <= c <= 102:
            c -= 87
        elif 65 <= c <= 70:
            c -= 55
        else:
            return False
        number[0] = number[0] << 4 | c
    return True


cdef inline bint _is(const Value* value, const char* word, Py_ssize_t size) noexcept nogil:
    return value.size == size and memcmp(value.at, word, size) == 0


cdef inline bint _boolean(const Value* value) noexcept nogil:
    return not value.escaped and (_is(value, b"false", 5) or _is(value, b"true", 4))


cdef Py_ssize_t _unescaped(const Value* value, uint8_t* to) noexcept nogil:
    """Writes the text of a string; its size, or -1 when it is not ASCII."""
    cdef const uint8_t* at = value.at
    cdef const uint8_t* end = value.at + value.size
    cdef uint8_t* begin = to
    cdef uint8_t c
    cdef Value four
    cdef uint64_t unit
    if not value.escaped:
        memcpy(to, at, value.size)
        return value.size
    while at < end:
        c = at[0]
        at += 1
        if c == 92:
            c = at[0]  # `_text` saw to it that there is one
            at += 1
            if c == 117:  # u
                if end - at < 4:
                    return -1
                four.at, four.size, four.quoted = at, 4, True
                if not _hex(&four, &unit) or unit > 126:
                    return -1
                c = <uint8_t>unit
                at += 4
            elif c == 110:
                c = 10
            elif c == 116:
                c = 9
            elif c == 114:
                c = 13
            elif c == 98:
                c = 8
            elif c == 102:
                c = 12
            elif c != 34 and c != 92 and c != 47:
                return -1
        to[0] = c
        to += 1
    return to - begin


cdef bint _special(const uint8_t* raw, Py_ssize_t size) noexcept nogil:
    """Whether the properties may say that this is no ordinary message."""
    return (
        memmem(raw, size, b"TRAN_MSG", 8) != NULL
        or memmem(raw, size, b"DELAY", 5) != NULL
        or memmem(raw, size, b"TIMER_", 6) != NULL
        or memmem(raw, size, b"__STARTDELIVERTIME", 18) != NULL
    )


# -- messages and their records ---------------------------------------------------------------------------------------

cdef void _find_unique(Text* text, bint numbered) noexcept nogil:
    """UNIQ_KEY of the properties: the last that is not empty counts. Agrees with `properties.get`.

    `own_id` becomes what an id of the broker's takes, where there is none and the producer does not number.
    """
    cdef const uint8_t* raw = text.properties
    cdef const uint8_t* end = raw + text.properties_size
    cdef const uint8_t* stop
    text.unique_size = text.own_id = 0
    while raw < end:
        stop = <const uint8_t*>memchr(raw, 2, end - raw)
        if stop == NULL:
            stop = end
        if stop - raw > 9 and memcmp(raw, b"UNIQ_KEY\x01", 9) == 0:
            text.unique = raw + 9
            text.unique_size = stop - raw - 9
        raw = stop + 1
    if not numbered and not text.unique_size:
        text.own_id = OWN_ID + (text.properties_size > 0 and end[-1] != 2)


cdef struct Head:
    int64_t queue_offset
    int64_t position
    int64_t born_ms
    int64_t store_ms
    const uint8_t* born_host
    const uint8_t* store_host
    const uint8_t* topic
    Py_ssize_t topic_size
    int32_t queue_id
    int32_t sys_flag
    int32_t reconsume_times


cdef bytes _record(const Text* text, const Head* head, crc32, own_id):
    """A message as `trimq.message.record.pack_record` writes it. `own_id`: where it has none."""
    cdef Py_ssize_t properties_size = text.properties_size + text.own_id
    cdef Py_ssize_t size = LEAST + head.topic_size + text.body_size + properties_size, digits = 0
    cdef bytes body = PyBytes_FromStringAndSize(<const char*>text.body, text.body_size)
    cdef bytes record = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* at = <uint8_t*>PyBytes_AS_STRING(record)
    cdef const char* own
    _put4(at, <uint32_t>size)
    _put4(at + 4, <uint32_t>MAGIC)
    _put4(at + 8, <uint32_t>crc32(body) & 0x7FFFFFFF)
    _put4(at + 12, <uint32_t>head.queue_id)
    _put4(at + 16, <uint32_t>text.flag)
    _put8(at + 20, <uint64_t>head.queue_offset)
    _put8(at + 28, <uint64_t>head.position)
    _put4(at + 36, <uint32_t>head.sys_flag & ~<uint32_t>HOSTS_V6)
    _put8(at + 40, <uint64_t>head.born_ms)
    memcpy(at + 48, head.born_host, 8)
    _put8(at + 56, <uint64_t>head.store_ms)
    memcpy(at + 64, head.store_host, 8)
    _put4(at + 72, <uint32_t>head.reconsume_times)
    _put8(at + 76, 0)
    _put4(at + 84, <uint32_t>text.body_size)
    at += FIXED
    memcpy(at, text.body, text.body_size)
    at += text.body_size
    at[0] = <uint8_t>head.topic_size
    memcpy(at + 1, head.topic, head.topic_size)
    at += 1 + head.topic_size
    at[0], at[1] = properties_size >> 8, properties_size & 0xFF
    at += 2
    memcpy(at, text.properties, text.properties_size)
    if text.own_id:
        at += text.properties_size
        if text.own_id > OWN_ID:
            at[0] = 2
            at += 1
        own = PyUnicode_AsUTF8AndSize(own_id, &digits)
        if digits != ID_DIGITS:
            raise ValueError("an id of another length")
        memcpy(at, b"UNIQ_KEY\x01", 9)
        memcpy(at + 9, own, ID_DIGITS)
        at[9 + ID_DIGITS] = 2
    return record


cdef int _begin(Head* head, bytes born_host, int64_t store_ms, bytes store_host) except -1:
    """What the records of one call have in common; `head` points into both hosts."""
    if PyBytes_GET_SIZE(born_host) != 8 or PyBytes_GET_SIZE(store_host) != 8:
        raise ValueError("a plain send has hosts of 8 bytes")
    head.born_host = <const uint8_t*>PyBytes_AS_STRING(born_host)
    head.store_host = <const uint8_t*>PyBytes_AS_STRING(store_host)
    head.store_ms = store_ms
    return 0


cdef int _at_topic(Head* head, bytes topic) except -1:
    """The records that follow are of this topic, into which `head` points."""
    if PyBytes_GET_SIZE(topic) > TOPIC_MAX:
        raise ValueError("a plain send has a topic of at most 127 bytes")
    head.topic, head.topic_size = <const uint8_t*>PyBytes_AS_STRING(topic), PyBytes_GET_SIZE(topic)
    return 0


cdef enum:
    I32_LEAST = -0x7FFFFFFF - 1
    I32_MOST = 0x7FFFFFFF

cdef int64_t _I64_MOST = 0x7FFFFFFFFFFFFFFF


cdef const uint8_t* _fields(
    const uint8_t* at, const uint8_t* end, Send* send, Slice* topic, Value* properties
) noexcept nogil:
    """The ext fields, from the opening brace on; returns what follows them, NULL when they are not plain."""
    cdef Value name, value
    cdef int64_t number = 0
    cdef uint32_t seen = 0, bit
    cdef uint8_t letter
    cdef uint32_t sequenced = 0
    if at == end or at[0] != 123:
        return NULL
    at += 1
    while True:
        if at == end or at[0] != 34:
            return NULL
        at = _text(at, end, &name)
        if at == NULL or name.escaped or at == end or at[0] != 58:
            return NULL
        at = _value(at + 1, end, &value)
        if at == NULL:
            return NULL
        if name.size == 1 and 97 <= name.at[0] <= 110:
            letter = name.at[0]
            bit = <uint32_t>1 << (letter - 97)
            if seen & bit:
                return NULL
            seen |= bit
            if letter == 105:  # i
                if not value.quoted:
                    return NULL
                properties[0] = value
            elif value.escaped or not value.size:
                return NULL
            elif letter == 98:  # b
                if not value.quoted or value.size > TOPIC_MAX:
                    return NULL
                topic.at, topic.size = value.at, value.size
            elif letter == 97 or letter == 99 or letter == 110:  # a, c, n
                if not value.quoted:
                    return NULL
            elif letter == 107:  # k
                if not _boolean(&value):
                    return NULL
            elif letter == 109:  # m
                if not _is(&value, b"false", 5):
                    return NULL
            elif letter == 103:  # g
                if not _number(&value, -_I64_MOST, _I64_MOST, &send.born_ms):
                    return NULL
            else:
                if not _number(&value, I32_LEAST, I32_MOST, &number):
                    return NULL
                if letter == 101:  # e
                    send.queue_id = <int32_t>number
                elif letter == 102:  # f
                    send.sys_flag = <int32_t>number
                elif letter == 104:  # h
                    send.text.flag = <int32_t>number
                elif letter == 106:  # j
                    send.reconsume_times = <int32_t>number
        elif name.size == 3 and memcmp(name.at, b"pid", 3) == 0:
            if sequenced & 1 or value.escaped or not _hex(&value, &send.pid):
                return NULL
            sequenced |= 1
        elif name.size == 2 and name.at[0] == 112:  # pe, ps, pf
            if value.escaped or not _number(&value, 0, _I64_MOST, &number):
                return NULL
            if name.at[1] == 101:
                if sequenced & 2 or number > I32_MOST:
                    return NULL
                sequenced |= 2
                send.epoch = <int32_t>number
            elif name.at[1] == 115:
                if sequenced & 4:
                    return NULL
                sequenced |= 4
                send.sequence = number
            elif name.at[1] == 102:
                if sequenced & 8:
                    return NULL
                sequenced |= 8
                send.floor = number
            else:
                return NULL
        elif _is(&name, b"again", 5) or _is(&name, b"fwd", 3) or _is(&name, b"fwdFrom", 7):
            return NULL
        elif value.escaped or not (
            value.quoted or _boolean(&value) or _number(&value, -_I64_MOST, _I64_MOST, &number)
        ):
            return NULL  # a field that nobody here reads, if it is in order
        if at == end:
            return NULL
        if at[0] == 125:
            break
        if at[0] != 44:
            return NULL
        at += 1
    # a, b, e, f and g have to be there.
    if seen & 0b1110011 != 0b1110011:
        return NULL
    send.numbered = sequenced == 15
    if sequenced and not send.numbered or send.numbered and send.floor > send.sequence:
        return NULL
    return at + 1


cdef bint _header(const uint8_t* at, const uint8_t* end, Send* send, Slice* topic, Value* properties) noexcept nogil:
    """A whole header; False when it is not that of a plain send."""
    cdef Value name, value
    cdef int64_t number = 0
    cdef uint32_t seen = 0
    if at == end or at[0] != 123:
        return False
    at += 1
    while True:
        if at == end or at[0] != 34:
            return False
        at = _text(at, end, &name)
        if at == NULL or name.escaped or at == end or at[0] != 58:
            return False
        at += 1
        if _is(&name, b"extFields", 9):
            if seen & 1:
                return False
            seen |= 1
            at = _fields(at, end, send, topic, properties)
            if at == NULL:
                return False
        else:
            at = _value(at, end, &value)
            if at == NULL or value.escaped:
                return False
            if _is(&name, b"code", 4):
                if seen & 2 or value.quoted or not _number(&value, CODE, CODE, &number):
                    return False
                seen |= 2
            elif _is(&name, b"opaque", 6):
                if seen & 4 or value.quoted or not _number(&value, I32_LEAST, I32_MOST, &number):
                    return False
                seen |= 4
                send.opaque = <int32_t>number
            elif _is(&name, b"flag", 4):
                if seen & 8 or value.quoted or not _number(&value, 0, ONEWAY, &number) or number == 1:
                    return False
                seen |= 8
                send.oneway = number == ONEWAY
            elif _is(&name, b"version", 7):
                if seen & 16 or value.quoted or not _number(&value, I32_LEAST, I32_MOST, &number):
                    return False
                seen |= 16
            elif _is(&name, b"language", 8) or _is(&name, b"serializeTypeCurrentRPC", 23):
                if not value.quoted:
                    return False
            else:
                return False
        if at == end:
            return False
        if at[0] == 125:
            break
        if at[0] != 44:
            return False
        at += 1
    return at + 1 == end and seen & 7 == 7


cdef object _key_of(const Text* text, bytes topic, int32_t reconsume_times, careful_key):
    cdef bytes unique = PyBytes_FromStringAndSize(<const char*>text.unique, text.unique_size)
    cdef uint64_t key = 0
    if id_key(topic, unique, reconsume_times, &key):
        return key
    return careful_key(topic, unique, reconsume_times)


# -- the run ----------------------------------------------------------------------------------------------------------

cdef class Run:
    """The plain sends at the beginning of a list of frames. Those that are numbered by their producer, and those that
    are not, do not mix."""

    cdef list _frames
    cdef Send* _sends
    cdef uint8_t* _texts
    cdef readonly list topics
    cdef readonly Py_ssize_t count
    cdef readonly bint numbered

    def __cinit__(self, frames, Py_ssize_t first, Py_ssize_t most, Py_ssize_t body_max):
        """At most `most` frames from `first` on (each without its length word); bodies of at most `body_max` bytes."""
        cdef Py_ssize_t number, room = 0, limit
        cdef uint8_t* text
        self._frames = list(frames[first : first + most])  # their bytes are pointed to
        self.topics = []
        self.count = 0
        self.numbered = False
        self._sends = NULL
        self._texts = NULL
        limit = len(self._frames)
        if not limit:
            return
        for number in range(limit):
            room += max(0, _header_size(self._frames[number]))
        self._sends = <Send*>PyMem_Malloc(limit * sizeof(Send))
        self._texts = <uint8_t*>PyMem_Malloc(room + 1)
        if self._sends == NULL or self._texts == NULL:
            raise MemoryError
        text = self._texts
        for number in range(limit):
            text = self._read(self._frames[number], text, body_max)
            if text == NULL:
                return
            self.count += 1

    def __dealloc__(self):
        PyMem_Free(self._sends)
        PyMem_Free(self._texts)

    cdef uint8_t* _read(self, bytes frame, uint8_t* text, Py_ssize_t body_max) except? NULL:
        """Read one frame; its properties are written to `text`. Returns what follows them, NULL when not plain."""
        cdef Send* send = &self._sends[self.count]
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(frame)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(frame), header = _header_size(frame)
        cdef Slice topic
        cdef Value properties
        cdef Py_ssize_t taken
        if header <= 0:
            return NULL
        properties.at, properties.size, properties.escaped = data, 0, False
        send.queue_id = send.sys_flag = send.text.flag = send.reconsume_times = 0
        send.oneway = False
        if not _header(data + 4, data + 4 + header, send, &topic, &properties):
            return NULL
        send.text.body, send.text.body_size = data + 4 + header, size - 4 - header
        if send.text.body_size > body_max:
            return NULL
        taken = _unescaped(&properties, text)
        if not 0 <= taken <= PROPERTIES_MAX or _special(text, taken):
            return NULL
        if memmem(text, taken, b"REPLY_TO_CLIENT", 15) != NULL:
            return NULL
        send.text.properties, send.text.properties_size = text, taken
        _find_unique(&send.text, send.numbered)
        if self.count and send.numbered != self.numbered:
            return NULL
        self.numbered = send.numbered
        send.topic = self._topic(&topic)
        send.record_size = LEAST + topic.size + send.text.body_size + taken + send.text.own_id
        return text + taken

    cdef int32_t _topic(self, Slice* topic) except -1:
        """The number of a topic; neighbours mostly have the same."""
        cdef Py_ssize_t number = len(self.topics)
        cdef bytes known
        while number:
            number -= 1
            known = self.topics[number]
            if PyBytes_GET_SIZE(known) == topic.size and memcmp(PyBytes_AS_STRING(known), topic.at, topic.size) == 0:
                return <int32_t>number
            if len(self.topics) - number > 4:  # not found among the newest: it may stand twice
                break
        self.topics.append(PyBytes_FromStringAndSize(<const char*>topic.at, topic.size))
        return <int32_t>len(self.topics) - 1

    def end_before_topic(self, Py_ssize_t topic):
        """The run ends before the first send to this topic, a number in `topics`."""
        cdef Py_ssize_t number
        for number in range(self.count):
            if self._sends[number].topic == topic:
                self.count = number
                return

    def end_at_queues(self, list write_queues):
        """The run ends before the first send to a queue that its topic does not have; one number per topic."""
        cdef Py_ssize_t number
        cdef Send* send
        for number in range(self.count):
            send = &self._sends[number]
            if not 0 <= send.queue_id < <int64_t>write_queues[send.topic]:
                self.count = number
                return

    def keys(self, careful_key):
        """The id key of each send; None for one without a unique id. `careful_key` makes those of long ids."""
        cdef list found = [None] * self.count
        cdef Py_ssize_t number
        cdef Send* send
        for number in range(self.count):
            send = &self._sends[number]
            if send.text.unique_size:
                found[number] = _key_of(&send.text, self.topics[send.topic], send.reconsume_times, careful_key)
        return found

    def sequence(self, Py_ssize_t number):
        """Producer id, epoch, sequence and floor of a numbered send."""
        self._check(number, number + 1)
        cdef Send* send = &self._sends[number]
        return send.pid, send.epoch, send.sequence, send.floor

    def without_id(self, Py_ssize_t first, Py_ssize_t end):
        """How many of these sends get an id of the broker's."""
        self._check(first, end)
        cdef Py_ssize_t number, count = 0
        for number in range(first, end):
            count += self._sends[number].text.own_id > 0
        return count

    def bytes_wanted(self, Py_ssize_t number, Py_ssize_t beside):
        """Topic, body and properties of one send and what stands beside them."""
        self._check(number, number + 1)
        return self._sends[number].record_size - LEAST + beside

    def fitting(self, Py_ssize_t first, Py_ssize_t cost, Py_ssize_t limit, Py_ssize_t records, Py_ssize_t beside,
                Py_ssize_t run_bytes):
        """The end of what fits from `first` on into a batch of this cost and limit with room for so many records.

        `beside`: upper bound of a record beside topic, body and properties. `run_bytes`: what a producer run takes;
        room for one is wanted even where there is none.
        """
        self._check(first, first)
        cdef Py_ssize_t number = first, size
        while number < self.count and number - first < records:
            size = self._sends[number].record_size
            if cost + size - LEAST + beside + run_bytes > limit:
                break
            cost += size + (run_bytes if self.numbered else 0)
            number += 1
        return number

    def place(self, Py_ssize_t first, Py_ssize_t end, int64_t position, list tids, dict following, next_offset):
        """Give sends their places, from `position` on. `following`: queue key → next offset, else `next_offset` of it.

        Returns (queue keys and their next offset afterwards as a dict, the sends' (queue id, offset, position)).
        """
        self._check(first, end)
        cdef dict after = {}
        cdef list places = [None] * (end - first)
        cdef Py_ssize_t number
        cdef Send* send
        cdef int64_t offset
        for number in range(first, end):
            send = &self._sends[number]
            key = <int64_t>tids[send.topic] << 16 | send.queue_id
            known = after.get(key)
            if known is None:
                known = following.get(key)
                if known is None:
                    known = next_offset(key)
            offset = known
            send.queue_offset, send.position = offset, position
            after[key] = offset + 1
            places[number - first] = (send.queue_id, offset, position)
            position += send.record_size
        return after, places

    def records(self, Py_ssize_t first, Py_ssize_t end, crc32, list ids, list multi_tags, bytes born_host,
                int64_t store_ms, bytes store_host, int32_t multi_tags_flag):
        """The records of placed sends. `ids` for those that have none; `multi_tags`: one boolean per topic."""
        self._check(first, end)
        cdef list made = [None] * (end - first)
        cdef Py_ssize_t number, taken = 0
        cdef Send* send
        cdef Head head
        _begin(&head, born_host, store_ms, store_host)
        for number in range(first, end):
            send = &self._sends[number]
            _at_topic(&head, self.topics[send.topic])
            head.queue_id, head.queue_offset, head.position = send.queue_id, send.queue_offset, send.position
            head.born_ms, head.reconsume_times = send.born_ms, send.reconsume_times
            head.sys_flag = send.sys_flag & ~multi_tags_flag
            if multi_tags[send.topic]:
                head.sys_flag |= multi_tags_flag
            if send.text.own_id:
                made[number - first] = _record(&send.text, &head, crc32, ids[taken])
                taken += 1
            else:
                made[number - first] = _record(&send.text, &head, crc32, None)
        return made

    def answers(self, Py_ssize_t first, Py_ssize_t end, bytes before_id, bytes before_queue, bytes before_offset,
                bytes before_opaque, bytes after):
        """The frames that answer placed sends with success, and their opaques; nothing for oneway sends.

        The five texts are the constant parts of the header, in order.
        """
        self._check(first, end)
        cdef Py_ssize_t most = (
            8 + PyBytes_GET_SIZE(before_id) + PyBytes_GET_SIZE(before_queue) + PyBytes_GET_SIZE(before_offset)
            + PyBytes_GET_SIZE(before_opaque) + PyBytes_GET_SIZE(after) + 64
        )
        cdef uint8_t* frames = <uint8_t*>PyMem_Malloc(most * (end - first) + 1)
        if frames == NULL:
            raise MemoryError
        cdef uint8_t* to = frames
        cdef uint8_t* begin
        cdef list opaques = []
        cdef Send* send
        cdef Py_ssize_t number
        try:
            for number in range(first, end):
                send = &self._sends[number]
                if send.oneway:
                    continue
                begin = to
                to = _add(begin + 8, before_id)
                to += snprintf(<char*>to, 17, "%016llX", <unsigned long long>send.position)
                to = _add(to, before_queue)
                to += snprintf(<char*>to, 12, "%d", <int>send.queue_id)
                to = _add(to, before_offset)
                to += snprintf(<char*>to, 21, "%lld", <long long>send.queue_offset)
                to = _add(to, before_opaque)
                to += snprintf(<char*>to, 12, "%d", <int>send.opaque)
                to = _add(to, after)
                _put4(begin, <uint32_t>(to - begin - 4))
                _put4(begin + 4, <uint32_t>(to - begin - 8))
                opaques.append(send.opaque)
            return PyBytes_FromStringAndSize(<const char*>frames, to - frames), opaques
        finally:
            PyMem_Free(frames)

    def body_bytes(self, Py_ssize_t first, Py_ssize_t end):
        self._check(first, end)
        cdef Py_ssize_t number, size = 0
        for number in range(first, end):
            size += self._sends[number].text.body_size
        return size

    cdef int _check(self, Py_ssize_t first, Py_ssize_t end) except -1:
        if not 0 <= first <= end <= self.count:
            raise IndexError("not a part of this run")
        return 0


cdef inline uint8_t* _add(uint8_t* to, bytes text) noexcept:
    memcpy(to, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    return to + PyBytes_GET_SIZE(text)


cdef Py_ssize_t _header_size(bytes frame) except -2:
    """Of a frame with a JSON header that may be as long as it says; -1 for another."""
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(frame)
    cdef uint32_t word
    if PyBytes_GET_SIZE(frame) < 4:
        return -1
    word = _u4(data)
    if word > 0x10000 or <Py_ssize_t>word > PyBytes_GET_SIZE(frame) - 4:
        return -1
    return word


# -- a batch ----------------------------------------------------------------------------------------------------------

cdef enum:
    ELEMENT = 22            # of an element beside body and properties
    ELEMENT_FIXED = 20      # up to and including the body length


cdef class Batch:
    """The elements of a batch's body (`trimq.message.batch`); `count` is 0 when they are not all plain."""

    cdef bytes _raw
    cdef Text* _texts
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t without_id
    cdef readonly Py_ssize_t text_bytes

    def __cinit__(self, bytes raw, bint numbered):
        """`numbered`: by their producer, so that they need no id."""
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(raw)
        cdef Py_ssize_t total = PyBytes_GET_SIZE(raw), at = 0, count = 0, end, properties_at, properties_size
        cdef uint32_t size, body_size
        cdef Text* text
        self._raw = raw  # pointed to
        self.count = self.without_id = self.text_bytes = 0
        self._texts = <Text*>PyMem_Malloc((total // ELEMENT + 1) * sizeof(Text))
        if self._texts == NULL:
            raise MemoryError
        while at < total:
            if total - at < ELEMENT:
                return
            size, body_size = _u4(data + at), _u4(data + at + 16)
            end = at + <Py_ssize_t>size
            properties_at = at + ELEMENT_FIXED + <Py_ssize_t>body_size + 2
            if end > total or properties_at > end:
                return
            properties_size = <Py_ssize_t>data[properties_at - 2] << 8 | data[properties_at - 1]
            if properties_at + properties_size != end or properties_size > PROPERTIES_MAX:
                return
            text = &self._texts[count]
            text.flag = <int32_t>_u4(data + at + 12)
            text.body, text.body_size = data + at + ELEMENT_FIXED, <Py_ssize_t>body_size
            text.properties, text.properties_size = data + properties_at, properties_size
            if _special(text.properties, properties_size):
                return
            _find_unique(text, numbered)
            self.without_id += text.own_id > 0
            self.text_bytes += text.body_size + properties_size + text.own_id
            count += 1
            at = end
        self.count = count

    def __dealloc__(self):
        PyMem_Free(self._texts)

    def keys(self, bytes topic, int32_t reconsume_times, careful_key):
        """The id key of each element; None for one without a unique id."""
        cdef list found = [None] * self.count
        cdef Py_ssize_t number
        for number in range(self.count):
            if self._texts[number].unique_size:
                found[number] = _key_of(&self._texts[number], topic, reconsume_times, careful_key)
        return found

    def records(self, crc32, list ids, bytes topic, int32_t queue_id, int64_t queue_offset, int64_t position,
                int32_t sys_flag, int64_t born_ms, bytes born_host, int64_t store_ms, bytes store_host,
                int32_t reconsume_times):
        """(records, their positions), one behind the other in queue and log. `ids` for those that have none."""
        cdef list made = [None] * self.count, positions = [None] * self.count
        cdef Py_ssize_t number, taken = 0
        cdef bytes record
        cdef Head head
        _begin(&head, born_host, store_ms, store_host)
        _at_topic(&head, topic)
        head.born_ms, head.reconsume_times = born_ms, reconsume_times
        head.queue_id, head.queue_offset, head.position, head.sys_flag = queue_id, queue_offset, position, sys_flag
        for number in range(self.count):
            if self._texts[number].own_id:
                record = _record(&self._texts[number], &head, crc32, ids[taken])
                taken += 1
            else:
                record = _record(&self._texts[number], &head, crc32, None)
            made[number] = record
            positions[number] = head.position
            head.position += PyBytes_GET_SIZE(record)
            head.queue_offset += 1
        return made, positions
