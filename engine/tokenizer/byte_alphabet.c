/*
 * byte_alphabet - bytes as printable characters. See byte_alphabet.h.
 */
#include "engine/tokenizer/byte_alphabet.h"

#include "base/strbuf.h"
#include "engine/tokenizer/utf8.h"

/* The bytes that do not stand for themselves come in three ranges. */
uint32_t byte_alphabet_char(unsigned char byte)
{
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte >= 0x7f && byte <= 0xa0)
        return 0x121u + byte - 0x7f;
    if (byte == 0xad)
        return 0x143;
    return byte;
}

int byte_alphabet_byte(uint32_t cp)
{
    if (cp >= 0x100 && cp <= 0x120)
        return (int)cp - 0x100;
    if (cp >= 0x121 && cp <= 0x142)
        return (int)cp - 0x121 + 0x7f;
    if (cp == 0x143)
        return 0xad;
    if (cp > 0x20 && cp < 0x100 && !(cp >= 0x7f && cp <= 0xa0) && cp != 0xad)
        return (int)cp;
    return -1;
}

void byte_alphabet_spell(struct strbuf *out, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        utf8_add(out, byte_alphabet_char((unsigned char)bytes[i]));
}

bool byte_alphabet_read(struct strbuf *out, const char *text, size_t len)
{
    size_t before = out->len;
    int n_bytes;

    for (size_t at = 0; at < len; at += (size_t)n_bytes) {
        int byte = byte_alphabet_byte(utf8_get(text + at, &n_bytes));

        if (byte < 0) {
            strbuf_truncate(out, before);
            return false;
        }
        strbuf_addch(out, byte);
    }
    return true;
}
