#include "memory.h"

#include <algorithm>

namespace software_gpu {
namespace {

const char* const too_early = "written or read by the launch before, which this one has not waited for";

// The greatest of the marks, which are compared by their blocks.
uint64_t latest(const uint64_t* marks, uint64_t count) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < count; i++) found = std::max(found, marks[i]);
    return found;
}

}  // namespace

void Memory::add(uint64_t begin, uint64_t bytes) {
    Range made;
    made.begin = begin;
    made.end = begin + bytes;
    if (notes_accesses) {
        made.writers.reset(static_cast<uint64_t*>(std::calloc(bytes, sizeof(uint64_t))));
        made.readers.reset(static_cast<uint64_t*>(std::calloc(bytes, sizeof(uint64_t))));
    }
    ranges[begin] = std::move(made);
}

void Memory::begin_launch(uint64_t blocks) {
    earlier_block = first_block;
    first_block = next_block;
    next_block += blocks + 1;  // the last number stands for several blocks
}

bool Accesses::ordered(uint64_t mark, unsigned warp) const {
    uint64_t by = Mark::block(mark);
    if (by < memory.first_block) return waited || by < memory.earlier_block;
    if (by == memory.last_number()) return false;  // several blocks: no one order of all is known
    if (by == block) return Mark::warp(mark) == warp || Mark::epoch(mark) < epoch;
    for (auto& one : acquired) {
        if (Mark::warp(one.by) != warp && Mark::epoch(one.by) >= epoch) continue;
        for (uint64_t released : one.released) {
            if (Mark::block(released) != by) continue;
            bool before = Mark::epoch(mark) < Mark::epoch(released) ||
                          (Mark::epoch(mark) == Mark::epoch(released) && Mark::warp(mark) == Mark::warp(released));
            if (before) return true;
        }
    }
    return false;
}

const char* Accesses::problem(uint64_t mark, unsigned warp, const char* within, const char* between) const {
    if (ordered(mark, warp)) return nullptr;
    if (Mark::block(mark) < memory.first_block) return too_early;
    return Mark::block(mark) == block ? within : between;
}

const char* Accesses::note_read(Range& range, uint64_t offset, uint64_t bytes, unsigned warp) {
    uint64_t *writers = range.writers.get() + offset, *readers = range.readers.get() + offset;
    uint64_t first = memory.first_block << 32, own = Mark::of(block, epoch, warp);
    uint64_t checked = waited ? first : memory.earlier_block << 32;
    if (latest(writers, bytes) >= checked)
        for (uint64_t i = 0; i < bytes; i++)
            if (const char* wrong = problem(
                    writers[i], warp, "another warp has written it without a barrier between",
                    "another block of the launch has written it"))
                return wrong;
    for (uint64_t i = 0; i < bytes; i++) {
        uint64_t before = readers[i];
        if (before == own) continue;
        if (before < first || (Mark::block(before) == block && Mark::epoch(before) < epoch)) readers[i] = own;
        else if (Mark::block(before) == block) readers[i] = Mark::of(block, epoch, Mark::several_warps);
        else readers[i] = Mark::of(memory.last_number(), 0, 0);
    }
    return nullptr;
}

const char* Accesses::note_write(Range& range, uint64_t offset, uint64_t bytes, unsigned warp) {
    uint64_t *writers = range.writers.get() + offset, *readers = range.readers.get() + offset;
    uint64_t own = Mark::of(block, epoch, warp);
    uint64_t checked = (waited ? memory.first_block : memory.earlier_block) << 32;
    if (latest(writers, bytes) >= checked || latest(readers, bytes) >= checked)
        for (uint64_t i = 0; i < bytes; i++) {
            const char* wrong = problem(
                writers[i], warp, "another warp has written it too without a barrier between",
                "another block of the launch has written it too");
            if (!wrong)
                wrong = problem(
                    readers[i], warp, "another warp has read it without a barrier between",
                    "another block of the launch has read it");
            if (wrong) return wrong;
        }
    std::fill_n(writers, bytes, own);
    return nullptr;
}

}  // namespace software_gpu
