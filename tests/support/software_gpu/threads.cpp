// What works thread by thread, and loads and stores.

#include <cstring>

#include "block.h"

namespace software_gpu {
namespace {

template <class T>
void blend_as(void* target, const void* from, const uint8_t* mask, unsigned count) {
    auto* into = static_cast<T*>(target);
    auto* values = static_cast<const T*>(from);
    for (unsigned i = 0; i < count; i++) into[i] = mask[i] ? values[i] : into[i];
}

template <class To, class From>
void converted(void* target, const void* from, unsigned count) {
    auto* into = static_cast<To*>(target);
    auto* values = static_cast<const From*>(from);
    for (unsigned i = 0; i < count; i++) into[i] = To(values[i]);
}

// Integers of one width to another: truncated, or extended by zeros or by the sign.
void resize(void* target, uint8_t to, const void* from, uint8_t bytes, bool is_signed, unsigned count) {
    int which = (to == 2 ? 0 : to == 4 ? 1 : 2) * 3 + (bytes == 2 ? 0 : bytes == 4 ? 1 : 2);
    switch (which + (is_signed ? 9 : 0)) {
        case 0: case 9: return converted<uint16_t, uint16_t>(target, from, count);
        case 1: case 10: return converted<uint16_t, uint32_t>(target, from, count);
        case 2: case 11: return converted<uint16_t, uint64_t>(target, from, count);
        case 3: return converted<uint32_t, uint16_t>(target, from, count);
        case 12: return converted<int32_t, int16_t>(target, from, count);
        case 4: case 13: return converted<uint32_t, uint32_t>(target, from, count);
        case 5: case 14: return converted<uint32_t, uint64_t>(target, from, count);
        case 6: return converted<uint64_t, uint16_t>(target, from, count);
        case 15: return converted<int64_t, int16_t>(target, from, count);
        case 7: return converted<uint64_t, uint32_t>(target, from, count);
        case 16: return converted<int64_t, int32_t>(target, from, count);
        case 8: case 17: return converted<uint64_t, uint64_t>(target, from, count);
    }
}

template <class Whole, class Part>
void join(void* target, const void* const* parts, unsigned count) {
    auto* into = static_cast<Whole*>(target);
    auto *low = static_cast<const Part*>(parts[0]), *high = static_cast<const Part*>(parts[1]);
    for (unsigned i = 0; i < count; i++) into[i] = Whole(low[i]) | Whole(high[i]) << (8 * sizeof(Part));
}

template <class Whole, class Part>
void split(void* target, const void* whole, unsigned by, unsigned count) {
    auto* into = static_cast<Part*>(target);
    auto* from = static_cast<const Whole*>(whole);
    for (unsigned i = 0; i < count; i++) into[i] = Part(from[i] >> by);
}

uint64_t element(const void* array, uint8_t bytes, unsigned thread) {
    uint64_t value = 0;
    std::memcpy(&value, static_cast<const uint8_t*>(array) + size_t(bytes) * thread, bytes);
    return value;
}

void set_element(void* array, uint8_t bytes, unsigned thread, uint64_t value) {
    std::memcpy(static_cast<uint8_t*>(array) + size_t(bytes) * thread, &value, bytes);
}

}  // namespace

void Block::blend(void* target, const void* from, uint8_t bytes) {
    if (!target) return;
    if (!mask) {
        std::memcpy(target, from, size_t(bytes) * lanes);
    } else if (bytes == 1) {
        blend_as<uint8_t>(target, from, mask, lanes);
    } else if (bytes == 2) {
        blend_as<uint16_t>(target, from, mask, lanes);
    } else if (bytes == 4) {
        blend_as<uint32_t>(target, from, mask, lanes);
    } else {
        blend_as<uint64_t>(target, from, mask, lanes);
    }
}

void Block::elementwise(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    const Operation& operation = *one.operation;
    if (bound.direct && !mask) {
        operation.run(lanes, bound.out, bound.in);
        return;
    }
    const void* in[4] = {};
    for (unsigned i = 0; i < operation.ins; i++) {
        in[i] = bound.in[i];
        if (one.in[i].bytes == operation.in_bytes[i]) continue;
        resize(scratch[i], operation.in_bytes[i], bound.in[i], one.in[i].bytes, false, lanes);
        in[i] = scratch[i];
    }
    void* out[2] = {scratch[4], scratch[5]};
    operation.run(lanes, out, in);
    if (one.second_is_not) {
        auto *values = static_cast<uint8_t*>(out[0]), *nots = static_cast<uint8_t*>(out[1]);
        for (unsigned i = 0; i < lanes; i++) nots[i] = values[i] ^ 1;
    }
    for (size_t i = 0; i < one.out.size(); i++) {
        uint8_t bytes = i < operation.outs ? operation.out_bytes[i] : 1;
        if (one.out[i].bytes && one.out[i].bytes != bytes) {  // the type of a result stands before that of its source
            size_t last = one.opcode.rfind('.'), before = one.opcode.rfind('.', last - 1);
            resize(scratch[i], one.out[i].bytes, out[i], bytes, one.opcode[before + 1] == 's', lanes);
            out[i] = scratch[i];
        }
        blend(bound.out[i], out[i], one.out[i].bytes);
    }
}

void Block::pack(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    uint8_t bytes = one.out[0].bytes;
    if (one.in.size() == 2 && bytes == 4) join<uint32_t, uint16_t>(scratch[0], bound.in, lanes);
    else if (one.in.size() == 2) join<uint64_t, uint32_t>(scratch[0], bound.in, lanes);
    else
        for (unsigned i = 0; i < lanes; i++) {
            uint64_t value = 0;
            for (size_t part = 0; part < one.in.size(); part++)
                value |= element(bound.in[part], one.element, i) << (8 * one.element * part);
            set_element(scratch[0], bytes, i, value);
        }
    blend(bound.out[0], scratch[0], bytes);
}

void Block::unpack(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    uint8_t bytes = one.in[0].bytes;
    std::memcpy(scratch[5], bound.in[0], size_t(bytes) * lanes);  // a part may be written in its place
    for (size_t part = 0; part < one.out.size(); part++) {
        unsigned by = 8 * one.element * unsigned(part);
        if (bytes == 4) split<uint32_t, uint16_t>(scratch[0], scratch[5], by, lanes);
        else if (one.element == 4) split<uint64_t, uint32_t>(scratch[0], scratch[5], by, lanes);
        else split<uint64_t, uint16_t>(scratch[0], scratch[5], by, lanes);
        blend(bound.out[part], scratch[0], one.out[part].bytes);
    }
}

void Block::load_parameter(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    uint64_t value = 0;
    std::memcpy(&value, &parameters[one.offset], one.element);
    if (one.type == 's') value = uint64_t(int64_t(value << (64 - 8 * one.element)) >> (64 - 8 * one.element));
    for (unsigned i = 0; i < lanes; i++)
        if (on(i)) set_element(bound.out[0], one.out[0].bytes, i, value);
}

// The address of each thread that is on; false if one is not aligned.
bool Block::find_addresses(const Bound& bound, unsigned input, int64_t offset, unsigned bytes) {
    const Operand& base = bound.instruction->in[input];
    uint64_t odd = 0;
    if (base.bytes == 8) {
        auto* from = static_cast<const uint64_t*>(bound.in[input]);
        for (unsigned i = 0; i < lanes; i++) addresses[i] = from[i] + offset;
    } else {
        auto* from = static_cast<const uint32_t*>(bound.in[input]);
        for (unsigned i = 0; i < lanes; i++) addresses[i] = uint32_t(from[i] + offset);
    }
    for (unsigned i = 0; i < threads; i++) odd |= on(i) ? addresses[i] : 0;
    if (!(odd & (bytes - 1))) return true;
    for (unsigned i = 0; i < threads; i++)
        if (on(i) && addresses[i] & (bytes - 1))
            return fail(address_text(addresses[i]) + " is not a multiple of " + std::to_string(bytes) + " bytes", i);
    return true;
}

std::string Block::address_text(uint64_t address) const {
    char text[32];
    std::snprintf(text, sizeof text, "address 0x%llx", static_cast<unsigned long long>(address));
    return text;
}

// Memory of the device that a thread accesses; null with `error` set. `order` is that of what accesses it.
uint8_t* Block::global(uint64_t address, unsigned bytes, unsigned thread, bool writes, bool ordered) {
    if (!range || address < range->begin || address >= range->end || bytes > range->end - address)
        range = memory.find(address, bytes);
    const char* wrong = "in no allocation";
    if (range) {
        wrong = writes    ? accesses.write(*range, address, bytes, thread / 32)
                : ordered ? nullptr
                          : accesses.read(*range, address, bytes, thread / 32);
        if (!wrong) return reinterpret_cast<uint8_t*>(address);
    }
    return wrong_place(address, bytes, wrong, thread), nullptr;
}

bool Block::wrong_place(uint64_t address, unsigned bytes, const char* wrong, unsigned thread) {
    return fail(std::to_string(bytes) + " bytes at " + address_text(address) + ": " + wrong, thread);
}

// What a thread reads; null with `error` set.
const uint8_t* Block::content(const Instruction& one, unsigned thread, unsigned bytes) {
    uint64_t address = addresses[thread];
    if (one.space == Space::global) return global(address, bytes, thread, false, one.order != Order::weak);
    const char* wrong = "beyond the memory of the thread";
    if (one.space == Space::local && address + bytes <= function.local_bytes)
        return &local[size_t(thread) * function.local_bytes + address];
    if (one.space == Space::shared && !(wrong = shared.read(uint32_t(address), bytes, thread / 32)))
        return shared.content() + address;
    return wrong_place(address, bytes, wrong, thread), nullptr;
}

bool Block::put(const Instruction& one, unsigned thread, unsigned bytes, const uint8_t* value) {
    uint64_t address = addresses[thread];
    if (one.space == Space::shared) {
        const char* wrong = shared.write(uint32_t(address), bytes, thread / 32, value);
        return !wrong || wrong_place(address, bytes, wrong, thread);
    }
    uint8_t* into = nullptr;
    if (one.space == Space::global) into = global(address, bytes, thread, true, false);
    else if (address + bytes <= function.local_bytes) into = &local[size_t(thread) * function.local_bytes + address];
    else wrong_place(address, bytes, "beyond the memory of the thread", thread);
    if (into) std::memcpy(into, value, bytes);
    return into;
}

bool Block::load(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    unsigned count = unsigned(one.out.size()), bytes = count * one.element;
    if (!find_addresses(bound, 0, one.offset, bytes)) return false;
    bool words = one.element == 4;
    for (auto& out : one.out) words &= out.bytes == 4;
    for (unsigned thread = 0; thread < threads; thread++) {
        if (!on(thread)) continue;
        const uint8_t* from = content(one, thread, bytes);
        if (!from) return false;
        for (unsigned i = 0; i < count; i++) {
            if (words) {
                std::memcpy(static_cast<uint32_t*>(bound.out[i]) + thread, from + 4 * i, 4);
                continue;
            }
            uint64_t value = 0;
            std::memcpy(&value, from + i * one.element, one.element);
            if (one.type == 's') value = uint64_t(int64_t(value << (64 - 8 * one.element)) >> (64 - 8 * one.element));
            if (bound.out[i]) set_element(bound.out[i], one.out[i].bytes, thread, value);
        }
        if (one.order == Order::acquire) accesses.acquire(addresses[thread], thread / 32);
    }
    return true;
}

bool Block::store(const Bound& bound) {
    const Instruction& one = *bound.instruction;
    unsigned count = unsigned(one.in.size()) - 1, bytes = count * one.element;
    if (!find_addresses(bound, 0, one.offset, bytes)) return false;
    for (unsigned thread = 0; thread < threads; thread++) {
        if (!on(thread)) continue;
        uint8_t value[64];
        for (unsigned i = 0; i < count; i++)
            std::memcpy(
                value + i * one.element,
                static_cast<const uint8_t*>(bound.in[i + 1]) + size_t(one.in[i + 1].bytes) * thread, one.element);
        if (!put(one, thread, bytes, value)) return false;
        if (one.order == Order::release) accesses.release(addresses[thread], thread / 32);
    }
    return true;
}

}  // namespace software_gpu
