// Shared memory of a block, with what makes an access to it wrong: bytes outside, bytes that nobody has written, bytes
// that an asynchronous instruction still writes or reads, and bytes that two warps touch between two barriers, one of
// them writing.

#pragma once

#include <cstdint>
#include <vector>

namespace software_gpu {

class Shared {
public:
    void start(uint32_t bytes);  // of a block

    // What is wrong with an access of a warp to [at, at + bytes), or nullptr. The caller takes the content. Warps that
    // hold the same value may write it to the same place.
    const char* read(uint32_t at, uint32_t bytes, unsigned warp);
    const char* write(uint32_t at, uint32_t bytes, unsigned warp, const uint8_t* value);
    // An atomic operation: ordered among its like, so that only other accesses clash with it.
    const char* combine(uint32_t at, uint32_t bytes);

    // A copy that goes on in the background, and its end, when its content is there for the warp that began it.
    const char* begin_copy(uint32_t at, uint32_t bytes, unsigned warp);
    void end_copy(uint32_t at, uint32_t bytes);

    // What wgmma reads in the background until the group of this number, counted from 1, is complete; for other warps
    // it counts as read until the next barrier then.
    const char* read_async(uint32_t at, uint32_t bytes, uint64_t group);
    void complete_async(uint64_t group);  // this one and all before it
    void proxy_fence();                   // what was written can be read by wgmma

    void barrier();

    uint8_t* content() { return bytes_.data(); }
    uint32_t size() const { return size_; }

private:
    uint32_t size_ = 0;
    uint32_t touched_begin = 0, touched_end = 0;  // since the barrier
    uint32_t written_end = 0;
    uint64_t completed = 0, issued = 0;
    struct AsyncRead {
        uint64_t group;
        uint32_t at, bytes;
    };
    std::vector<AsyncRead> async_reads;
    // By byte: its value; what it holds; 0 or 1 + the one warp that wrote and read it since the barrier, or `several`;
    // the last group of wgmma that reads it.
    std::vector<uint8_t> bytes_, state, writer, reader, async_group;

    void touch(uint32_t at, uint32_t bytes) {
        touched_begin = at < touched_begin ? at : touched_begin;
        touched_end = at + bytes > touched_end ? at + bytes : touched_end;
    }
    bool inside(uint32_t at, uint32_t bytes) const { return at < size_ && bytes <= size_ - at; }
    bool goes_on(uint8_t group) const;
    template <class Word>
    bool plainly_read(uint32_t at, uint8_t own);
    template <class Word>
    bool plainly_written(uint32_t at, uint8_t own);
    const char* clash_with_writer(uint32_t at, uint32_t bytes, uint8_t own);
    const char* begin_write(uint32_t at, uint32_t bytes, unsigned warp, uint8_t left, const uint8_t* value);
    void note_reader(uint32_t at, uint32_t bytes, uint8_t own);
};

}  // namespace software_gpu
