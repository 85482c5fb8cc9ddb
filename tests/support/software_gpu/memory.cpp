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
    for (; ordering.is_list(mark); mark = ordering.first_of(mark).next)
        if (const char* wrong = problem(ordering.first_of(mark).mark, warp, within, between)) return wrong;
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
    uint64_t before = 0, after = own;  // mostly they are all the same
    for (uint64_t i = 0; i < bytes; i++) {
        if (readers[i] != before) {
            before = readers[i];
            after = before < first ? own : with_reader(before, own);
        }
        readers[i] = after;
    }
    return nullptr;
}

// The mark of who read a byte before and of who reads it now.
uint64_t Accesses::with_reader(uint64_t before, uint64_t own) {
    if (Mark::block(before) == block) {
        if (Mark::epoch(before) < epoch) return own;
        return Mark::warp(before) == Mark::warp(own) ? before : Mark::of(block, epoch, Mark::several_warps);
    }
    if (!ordering.is_list(before) || Mark::block(ordering.first_of(before).mark) != block)
        return ordering.link(own, before);
    Ordering::Link here = ordering.first_of(before);
    uint64_t both = with_reader(here.mark, own);
    return both == here.mark ? before : ordering.link(both, here.next);
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
