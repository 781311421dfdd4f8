// libacl_op_compiler: torch_npu sets compile options when it starts, and takes no error for an answer.
#pragma once
#include "acl_types.h"
#include "declare.h"

namespace kvf {

enum CompileOption : unsigned { kPrecisionMode = 0 };

KVF_API(aclError, aclSetCompileopt, (CompileOption option, const char *value))
KVF_API(size_t, aclGetCompileoptSize, (CompileOption option))
KVF_API(aclError, aclGetCompileopt, (CompileOption option, char *value, size_t length))

}  // namespace kvf
