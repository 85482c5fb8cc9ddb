// PTX as a sequence of words, numbers and signs.

#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace software_gpu {

struct Token {
    std::string_view text;
    uint32_t line;

    bool is(std::string_view other) const { return text == other; }
    bool starts(std::string_view other) const { return text.substr(0, other.size()) == other; }
    bool is_word() const;    // a name, an opcode, a directive, a register
    bool is_number() const;
};

// The last token is empty, at the last line.
std::vector<Token> tokens(std::string_view text);

// The value of a number: an integer, or the bits of a float, whose bytes are told (else 0). False: no number.
bool number(std::string_view text, uint64_t& value, uint8_t& float_bytes);

}  // namespace software_gpu
