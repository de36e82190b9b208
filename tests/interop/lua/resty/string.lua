-- OpenResty's own library of this name is not in Debian; the client wants this one function of it.
return {
    to_hex = function(bytes)
        return (bytes:gsub('.', function(byte) return ('%02x'):format(byte:byte()) end))
    end,
}
