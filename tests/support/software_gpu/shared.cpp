#include "shared.h"

#include <algorithm>
#include <cstring>

namespace software_gpu {
namespace {

constexpr uint8_t defined = 1, fenced = 2, copying = 128;  // what a byte holds
constexpr uint8_t several = 255, atomic = 254;             // instead of a warp
constexpr uint64_t each = 0x0101010101010101;

// Up to 8 bytes of an array as one number, so that most accesses take a few comparisons.
struct Piece {
    uint8_t* at;
    uint32_t bytes;
    uint64_t mask() const { return bytes == 8 ? ~uint64_t(0) : (uint64_t(1) << (8 * bytes)) - 1; }
    uint64_t load() const {
        uint64_t value = 0;
        std::memcpy(&value, at, bytes);
        return value;
    }
    void fill(uint8_t value) const { std::memset(at, value, bytes); }
};

template <class F>
const char* by_pieces(uint32_t at, uint32_t bytes, F&& each_piece) {
    while (bytes > 0) {
        uint32_t step = bytes < 8 ? bytes : 8;
        if (const char* wrong = each_piece(at, step)) return wrong;
        at += step;
        bytes -= step;
    }
    return nullptr;
}

}  // namespace

void Shared::start(uint32_t bytes) {
    size_ = bytes;
    if (bytes_.size() < bytes) {
        for (auto* one : {&bytes_, &state, &writer, &reader, &async_group}) one->assign(bytes, 0);
    } else {
        std::fill_n(state.begin(), bytes, 0);
        std::fill_n(writer.begin(), bytes, 0);
        std::fill_n(reader.begin(), bytes, 0);
        std::fill_n(async_group.begin(), bytes, 0);
    }
    std::fill_n(bytes_.begin(), bytes, 0xff);
    touched_begin = bytes;
    touched_end = written_end = 0;
    completed = issued = 0;
    async_reads.clear();
}

const char* Shared::clash_with_writer(uint32_t at, uint32_t bytes, uint8_t own) {
    return by_pieces(at, bytes, [&](uint32_t place, uint32_t step) -> const char* {
        uint64_t found = Piece{&writer[place], step}.load();
        if (found == 0 || found == (own * each & Piece{nullptr, step}.mask())) return nullptr;
        for (uint32_t i = 0; i < step; i++)
            if (writer[place + i] != 0 && writer[place + i] != own)
                return "shared memory that another warp has written without a barrier between";
        return nullptr;
    });
}

void Shared::note_reader(uint32_t at, uint32_t bytes, uint8_t own) {
    by_pieces(at, bytes, [&](uint32_t place, uint32_t step) -> const char* {
        Piece piece{&reader[place], step};
        uint64_t found = piece.load(), mine = own * each & piece.mask();
        if (found == mine || found == piece.mask()) return nullptr;
        if (found == 0) piece.fill(own);
        else
            for (uint32_t i = place; i < place + step; i++)
                reader[i] = reader[i] == 0 || reader[i] == own ? own : several;
        return nullptr;
    });
}

// The ways most accesses go, as a few operations on whole words; false where it takes a closer look.
template <class Word>
bool Shared::plainly_read(uint32_t at, uint8_t own) {
    constexpr auto ones = Word(each);
    Word holds, written, read, mine = Word(own * ones);
    std::memcpy(&holds, &state[at], sizeof(Word));
    std::memcpy(&written, &writer[at], sizeof(Word));
    std::memcpy(&read, &reader[at], sizeof(Word));
    if ((holds & Word(0x81 * ones)) != ones || (written != 0 && written != mine)) return false;
    if (read == mine || read == Word(~Word(0))) return true;
    if (read != 0) return false;
    std::memcpy(&reader[at], &mine, sizeof(Word));
    return true;
}

template <class Word>
bool Shared::plainly_written(uint32_t at, uint8_t own) {
    constexpr auto ones = Word(each);
    Word holds, written, read, mine = Word(own * ones), after = Word(defined * ones);
    std::memcpy(&holds, &state[at], sizeof(Word));
    std::memcpy(&written, &writer[at], sizeof(Word));
    std::memcpy(&read, &reader[at], sizeof(Word));
    bool plain = !(holds & Word(0x80 * ones)) && (written == 0 || written == mine) && (read == 0 || read == mine);
    if (!plain || issued > completed) return false;
    std::memcpy(&writer[at], &mine, sizeof(Word));
    std::memcpy(&state[at], &after, sizeof(Word));
    return true;
}

const char* Shared::read(uint32_t at, uint32_t bytes, unsigned warp) {
    if (!inside(at, bytes)) return "shared memory beyond that of the block";
    auto own = uint8_t(warp + 1);
    bool plain = bytes == 16  ? plainly_read<uint64_t>(at, own) && plainly_read<uint64_t>(at + 8, own)
                 : bytes == 8 ? plainly_read<uint64_t>(at, own)
                              : bytes == 4 && plainly_read<uint32_t>(at, own);
    if (plain) return touch(at, bytes), nullptr;
    const char* wrong = by_pieces(at, bytes, [&](uint32_t place, uint32_t step) -> const char* {
        Piece piece{&state[place], step};
        uint64_t found = piece.load(), wanted = each & piece.mask();
        if ((found & 0x81 * each & piece.mask()) == wanted) return nullptr;
        return found & 0x80 * each ? "shared memory that a copy still writes (cp.async without its wait)"
                                   : "shared memory that nobody has written";
    });
    if (wrong) return wrong;
    touch(at, bytes);
    if ((wrong = clash_with_writer(at, bytes, uint8_t(warp + 1)))) return wrong;
    note_reader(at, bytes, uint8_t(warp + 1));
    return nullptr;
}

// Groups are noted by their number modulo 255, which is enough as long as not that many go on at a time.
bool Shared::goes_on(uint8_t group) const {
    return group && (group - 1 + 255 - completed % 255) % 255 < issued - completed;
}

const char* Shared::begin_write(uint32_t at, uint32_t bytes, unsigned warp, uint8_t left, const uint8_t* value) {
    if (!inside(at, bytes)) return "shared memory beyond that of the block";
    auto own = uint8_t(warp + 1);
    touch(at, bytes);
    written_end = std::max(written_end, at + bytes);
    if (const char* wrong = clash_with_writer(at, bytes, own)) {
        if (!value || std::memcmp(value, &bytes_[at], bytes) != 0) return wrong;
        own = several;
    }
    return by_pieces(at, bytes, [&](uint32_t place, uint32_t step) -> const char* {
        uint64_t readers = Piece{&reader[place], step}.load();
        if (readers != 0 && readers != ((warp + 1) * each & Piece{nullptr, step}.mask()))
            for (uint32_t i = 0; i < step; i++)
                if (reader[place + i] != 0 && reader[place + i] != warp + 1)
                    return "shared memory that another warp has read without a barrier between";
        if (Piece{&state[place], step}.load() & 0x80 * each)
            return "shared memory that a copy still writes (cp.async without its wait)";
        if (issued > completed && Piece{&async_group[place], step}.load())
            for (uint32_t i = 0; i < step; i++)
                if (goes_on(async_group[place + i]))
                    return "shared memory that wgmma still reads";
        Piece{&writer[place], step}.fill(own);
        Piece{&state[place], step}.fill(left);
        return nullptr;
    });
}

const char* Shared::write(uint32_t at, uint32_t bytes, unsigned warp, const uint8_t* value) {
    auto own = uint8_t(warp + 1);
    bool plain = inside(at, bytes) &&
                 (bytes == 16  ? plainly_written<uint64_t>(at, own) && plainly_written<uint64_t>(at + 8, own)
                  : bytes == 8 ? plainly_written<uint64_t>(at, own)
                               : bytes == 4 && plainly_written<uint32_t>(at, own));
    if (plain) {
        touch(at, bytes);
        written_end = std::max(written_end, at + bytes);
    }
    const char* wrong = plain ? nullptr : begin_write(at, bytes, warp, defined, value);
    if (!wrong) std::memcpy(&bytes_[at], value, bytes);
    return wrong;
}

const char* Shared::combine(uint32_t at, uint32_t bytes) {
    if (!inside(at, bytes)) return "shared memory beyond that of the block";
    for (uint32_t i = at; i < at + bytes; i++)
        if (!(state[i] & defined)) return "shared memory that nobody has written";
    return begin_write(at, bytes, atomic - 1, defined, nullptr);
}

const char* Shared::begin_copy(uint32_t at, uint32_t bytes, unsigned warp) {
    return begin_write(at, bytes, warp, copying, nullptr);
}

void Shared::end_copy(uint32_t at, uint32_t bytes) { std::memset(&state[at], defined, bytes); }

const char* Shared::read_async(uint32_t at, uint32_t bytes, uint64_t group) {
    if (!inside(at, bytes)) return "shared memory beyond that of the block";
    for (uint32_t i = at; i < at + bytes; i++) {
        if (state[i] & copying) return "shared memory that a copy still writes (cp.async without its wait)";
        if (!(state[i] & defined)) return "shared memory that nobody has written";
        if (writer[i]) return "shared memory that was written without a barrier between";
        if (!(state[i] & fenced)) return "shared memory that was written without fence.proxy.async since";
    }
    issued = std::max(issued, group);
    std::memset(&async_group[at], int(1 + (group - 1) % 255), bytes);
    async_reads.push_back({group, at, bytes});
    return nullptr;
}

void Shared::complete_async(uint64_t group) {
    completed = std::max(completed, group);
    if (completed >= issued) std::fill(async_group.begin(), async_group.begin() + size_, 0);
    size_t kept = 0;
    for (auto& one : async_reads) {
        if (one.group > completed) {
            async_reads[kept++] = one;
            continue;
        }
        std::memset(&reader[one.at], several, one.bytes);
        touch(one.at, one.bytes);
    }
    async_reads.resize(kept);
}

void Shared::proxy_fence() {
    for (uint32_t i = 0; i < written_end; i++) state[i] |= (state[i] & defined) * fenced;
}

void Shared::barrier() {
    if (touched_end <= touched_begin) return;
    std::memset(&writer[touched_begin], 0, touched_end - touched_begin);
    std::memset(&reader[touched_begin], 0, touched_end - touched_begin);
    touched_begin = size_;
    touched_end = 0;
}

}  // namespace software_gpu
