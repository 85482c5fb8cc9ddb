#include "ptx_tokens.h"

#include <cstdlib>
#include <cstring>
#include <string>

namespace software_gpu {
namespace {

bool digit(char c) { return c >= '0' && c <= '9'; }
bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$' || c == '%'; }

int value_of(char c) {
    if (digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return 99;
}

}  // namespace

bool Token::is_word() const { return !text.empty() && (letter(text[0]) || (text[0] == '.' && text.size() > 1)); }
bool Token::is_number() const { return !text.empty() && digit(text[0]); }

std::vector<Token> tokens(std::string_view text) {
    std::vector<Token> found;
    uint32_t line = 1;
    size_t at = 0, end = text.size();
    auto skip_to = [&](size_t to) {
        for (; at < to && at < end; at++) line += text[at] == '\n';
    };
    while (at < end) {
        char c = text[at];
        if (c == '\n' || c == ' ' || c == '\t' || c == '\r' || c == '\0') {
            skip_to(at + 1);
        } else if (text.substr(at, 2) == "//") {
            skip_to(text.find('\n', at));
        } else if (text.substr(at, 2) == "/*") {
            size_t close = text.find("*/", at + 2);
            skip_to(close == text.npos ? end : close + 2);
        } else if (c == '"') {
            size_t close = text.find('"', at + 1);
            size_t to = close == text.npos ? end : close + 1;
            found.push_back({text.substr(at, to - at), line});
            skip_to(to);
        } else {
            size_t to = at + 1;
            if (letter(c) || digit(c) || c == '.')
                while (to < end && (letter(text[to]) || digit(text[to]) || text[to] == '.' ||
                                    (text[to] == ':' && text.substr(to, 2) == "::" && ++to)))
                    to++;
            found.push_back({text.substr(at, to - at), line});
            at = to;
        }
    }
    found.push_back({text.substr(end), line});
    return found;
}

bool number(std::string_view text, uint64_t& value, uint8_t& float_bytes) {
    value = 0;
    float_bytes = 0;
    int base = 10;
    if (text.size() > 2 && text[0] == '0') {
        char kind = text[1] | 32;
        if (kind == 'x') base = 16;
        if (kind == 'b') base = 2;
        if ((kind == 'f' && text.size() == 10) || (kind == 'd' && text.size() == 18)) {
            base = 16;
            float_bytes = kind == 'f' ? 4 : 8;
        }
        if (base != 10) text.remove_prefix(2);
        else if (digit(text[1])) base = 8;
    }
    if (base == 10 && text.find('.') != text.npos) {
        double decimal = std::strtod(std::string(text).c_str(), nullptr);
        std::memcpy(&value, &decimal, 8);
        float_bytes = 8;
        return true;
    }
    if (!float_bytes && text.size() > 1 && (text.back() | 32) == 'u') text.remove_suffix(1);
    if (text.empty()) return false;
    for (char c : text) {
        if (value_of(c) >= base) return false;
        value = value * base + value_of(c);
    }
    return true;
}

}  // namespace software_gpu
