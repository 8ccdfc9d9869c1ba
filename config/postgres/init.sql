-- The role that edgeproxy runs as: psql -f init.sql, as the superuser, once, in the database `edgeproxy`.
-- `edgeproxy migrate` then creates the schema as this role, which owns what it made: jobs add a table for each month.

-- From a file, so that the password is in no argument, no environment and no history.
\set password `cat /run/secrets/database_password`

-- Fewer connections than the server has, so that an administrator always gets in.
CREATE ROLE edgeproxy LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 40 PASSWORD :'password';

-- CREATE is for a schema of its own; in the schema `public` nobody but the owner may create since PostgreSQL 15.
REVOKE ALL ON DATABASE edgeproxy FROM PUBLIC;
GRANT CONNECT, CREATE ON DATABASE edgeproxy TO edgeproxy;
