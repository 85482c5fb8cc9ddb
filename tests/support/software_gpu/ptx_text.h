// PTX as it is written: functions, their registers and statements, with names resolved by scope.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace software_gpu {

struct RegisterText {
    std::string name;
    uint8_t bytes;  // of one thread's value: 1 for a predicate
    uint32_t index;  // among the function's registers of that width
};

struct OperandText {
    enum Kind : uint8_t {
        register_,
        name,     // a special register, a variable or a label
        number,   // as 64 bits: an integer, or the bits of a float
        vector,   // {a, b}
        pair,     // a|b
        address,  // [parts[0] + value]; parts is empty if the base is a number
        nothing,  // _
    } kind = nothing;
    bool negated = false;  // !%p
    uint8_t bytes = 0;     // of a register; of a float 4 or 8
    uint32_t index = 0;
    uint64_t value = 0;
    std::string text;
    std::vector<OperandText> parts;
};

struct StatementText {
    uint32_t line;
    std::string label;   // if not empty, this is no instruction
    std::string opcode;  // with all its dots
    std::vector<OperandText> guard;  // none or one: the predicate of @%p
    std::vector<OperandText> operands;
};

struct VariableText {
    std::string name, space;  // ".shared", ".local", ".global", ".const"
    uint32_t alignment = 1;
    uint64_t bytes = 0;  // zero: as many as the launch gives
    std::vector<uint8_t> content;
    bool external = false;
};

struct ParameterText {
    std::string name;
    uint32_t bytes, offset;
};

struct FunctionText {
    std::string name;
    uint32_t line = 0;
    uint32_t required_threads = 0;  // zero: any number
    std::vector<ParameterText> parameters;
    std::vector<VariableText> variables;  // .shared and .local of this function
    std::vector<StatementText> statements;
    std::vector<std::string> predicates, registers16, registers32, registers64;  // their names, by index
};

struct ModuleText {
    std::string target;
    std::vector<VariableText> variables;
    std::vector<FunctionText> functions;
};

// False with a message that names the line.
bool parse(std::string_view ptx, ModuleText& module, std::string& error);

}  // namespace software_gpu
