// The memory of the device: which addresses are allocated.

#pragma once

#include <cstdint>
#include <map>

namespace software_gpu {

// Addresses are those of the host.
class Memory {
public:
    void add(uint64_t begin, uint64_t bytes) { ranges[begin] = bytes; }
    void remove(uint64_t begin) { ranges.erase(begin); }

    // Whether all of [begin, begin + bytes) lies in one allocation; then this one's bounds.
    bool inside(uint64_t begin, uint64_t bytes, uint64_t& range_begin, uint64_t& range_end) const {
        auto after = ranges.upper_bound(begin);
        if (after == ranges.begin()) return false;
        auto found = std::prev(after);
        range_begin = found->first;
        range_end = found->first + found->second;
        return begin < range_end && bytes <= range_end - begin;
    }

private:
    std::map<uint64_t, uint64_t> ranges;  // bytes by begin
};

}  // namespace software_gpu
