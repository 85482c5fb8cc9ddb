// All operations on numbers, by opcode.
#include "numbers.h"

#include <map>
#include <mutex>
#include <string>

#include "families.h"

namespace software_gpu {

const Operation* find_number(std::string_view text) {
    static std::mutex mutex;
    static std::map<std::string, Found, std::less<>> known;
    std::lock_guard lock(mutex);
    auto found = known.find(text);
    if (found == known.end()) {
        Opcode opcode(text);
        Found operation;
        for (auto find : {find_float, find_small_float, find_comparison, find_conversion, find_bits})
            if (!operation) operation = find(opcode);
        found = known.emplace(std::string(text), operation).first;
    }
    return found->second ? &*found->second : nullptr;
}

}  // namespace software_gpu
