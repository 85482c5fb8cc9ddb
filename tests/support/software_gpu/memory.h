// The memory of the device: which addresses are allocated, and who has written and read each byte.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace software_gpu {

struct FreeMarks {
    void operator()(uint64_t* memory) const { std::free(memory); }
};

// One allocation, at addresses of the host.
struct Range {
    uint64_t begin = 1, end = 0;
    // By byte, as Mark says; null if nobody notes them.
    std::unique_ptr<uint64_t, FreeMarks> writers, readers;
};

// Who has accessed a byte: the block (counted over all launches), after how many barriers, and the warp.
struct Mark {
    static constexpr uint64_t several_warps = 255;

    static uint64_t of(uint64_t block, uint64_t epoch, uint64_t warp) { return block << 32 | epoch << 8 | warp; }
    static uint64_t block(uint64_t mark) { return mark >> 32; }
    static uint64_t epoch(uint64_t mark) { return mark >> 8 & 0xffffff; }
    static uint64_t warp(uint64_t mark) { return mark & 0xff; }
};

class Memory {
public:
    // Whether to note who accesses what, so that races are found; 32 bytes for each that is accessed.
    explicit Memory(bool notes_accesses = true) : notes_accesses(notes_accesses) {}

    void add(uint64_t begin, uint64_t bytes);
    void remove(uint64_t begin) { ranges.erase(begin); }

    // The allocation that all of [begin, begin + bytes) lies in, or null.
    Range* find(uint64_t begin, uint64_t bytes) {
        auto after = ranges.upper_bound(begin);
        if (after == ranges.begin()) return nullptr;
        Range& found = std::prev(after)->second;
        return begin < found.end && bytes <= found.end - begin ? &found : nullptr;
    }

    // The blocks of a launch have the numbers from `first_block` on, those of the one before from `earlier_block` on.
    void begin_launch(uint64_t blocks);
    uint64_t first_block = 1, earlier_block = 1;
    uint64_t last_number() const { return next_block - 1; }  // of the launch: no block's, see `Ordering::link`

    const bool notes_accesses;

private:
    std::map<uint64_t, Range> ranges;  // by begin
    uint64_t next_block = 1;
};

// What blocks of a launch know of each other through atomic operations that release and acquire, and lists of marks,
// where several blocks have read a byte.
class Ordering {
public:
    explicit Ordering(uint64_t list_number) : list_number(list_number) {}

    struct Link {
        uint64_t mark, next;  // the next is a mark again, or a list
    };
    bool is_list(uint64_t mark) const { return Mark::block(mark) == list_number; }
    const Link& first_of(uint64_t list) const { return links[uint32_t(list)]; }
    // The list that begins with a mark; the same for the same.
    uint64_t link(uint64_t mark, uint64_t next) {
        auto [place, added] = known.try_emplace({mark, next}, list_number << 32 | links.size());
        if (added) links.push_back({mark, next});
        return place->second;
    }

    void release(uint64_t address, uint64_t mark) { released[address].push_back(mark); }
    // What had been released at an address when it was acquired there.
    std::vector<uint64_t> at(uint64_t address) const {
        auto found = released.find(address);
        return found == released.end() ? std::vector<uint64_t>() : found->second;
    }

private:
    const uint64_t list_number;  // in place of a block's
    std::map<uint64_t, std::vector<uint64_t>> released;
    std::vector<Link> links;
    std::map<std::pair<uint64_t, uint64_t>, uint64_t> known;
};

// The accesses of one block. What they say is wrong with an access, or null.
class Accesses {
public:
    Accesses(Memory& memory, Ordering& ordering, bool programmatic)
        : memory(memory), ordering(ordering), programmatic(programmatic) {}

    void start(uint64_t number) {  // of the block in its launch
        block = memory.first_block + number;
        epoch = 0;
        waited = !programmatic;
        acquired.clear();
    }
    void barrier() { epoch++; }
    void wait_for_the_launch_before() { waited = true; }
    bool has_waited() const { return waited; }

    const char* read(Range& range, uint64_t address, uint64_t bytes, unsigned warp) {
        return range.writers ? note_read(range, address - range.begin, bytes, warp) : nullptr;
    }
    const char* write(Range& range, uint64_t address, uint64_t bytes, unsigned warp) {
        return range.writers ? note_write(range, address - range.begin, bytes, warp) : nullptr;
    }
    void release(uint64_t address, unsigned warp) { ordering.release(address, Mark::of(block, epoch, warp)); }
    void acquire(uint64_t address, unsigned warp) {
        acquired.push_back({Mark::of(block, epoch, warp), ordering.at(address)});
    }

private:
    Memory& memory;
    Ordering& ordering;
    const bool programmatic;  // the launch may begin before the one before it has ended
    bool waited = true;
    uint64_t block = 0, epoch = 0;
    struct Acquired {
        uint64_t by;
        std::vector<uint64_t> released;
    };
    std::vector<Acquired> acquired;

    const char* note_read(Range& range, uint64_t offset, uint64_t bytes, unsigned warp);
    const char* note_write(Range& range, uint64_t offset, uint64_t bytes, unsigned warp);
    // Whether an access by `mark` is certain to have happened before one of a warp of this block now.
    bool ordered(uint64_t mark, unsigned warp) const;
    uint64_t with_reader(uint64_t before, uint64_t own);
    const char* problem(uint64_t mark, unsigned warp, const char* within, const char* between) const;
};

}  // namespace software_gpu
